//! LFM2-VL models behind OpenAI's chat completions interface, as `lfm2vl serve` serves them.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use lfm2vl::Engine;
//! use lfm2vl_server::{Service, Settings, serve};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let engine = Engine::builder("lfm2-vl-450m").slots(8).share_prefixes(true).build()?;
//! let service = Service::new(engine, Settings::default())?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! serve(listener, service, std::future::pending(), Duration::ZERO).await;
//! # Ok(())
//! # }
//! ```
//!
//! [`Service::router`] is an [`axum`] router, which can be mounted in another one. What clients can ask is
//! described by `GET /openapi.json`.

#![warn(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod admission;
mod auth;
mod batch;
mod chat;
mod error;
mod layout;
mod metrics;
mod middleware;
mod models;
mod openapi;
mod operators;
mod page;
mod router;
mod serve;
mod service;
mod settings;
mod wire;

pub use batch::line_id;
pub use chat::check_request;
pub use serve::serve;
pub use service::{Service, ServiceError};
pub use settings::Settings;
