//! A service of one page of code: `POST /ask` with `{"prompt": "...", "image": "data:..."}` answers with
//! server-sent events. A client that disconnects cancels its answer; one that finds the queue full gets 429.
//! `cargo run --release --example service -- FOLDER 8080`

use std::{convert::Infallible, error::Error, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    response::{
        IntoResponse, Response,
        sse::{Event, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt};
use lfm2vl::{
    Answer, Conversation, Engine, ErrorKind, GenerationOptions,
    chat::Message,
    image::{Limits, load},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Question {
    prompt: String,
    /// A data URI.
    image: Option<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("give the folder that lfm2vl-export wrote")?;
    let port: u16 = arguments.next().map_or(Ok(8080), |port| port.parse())?;
    let engine = Engine::builder(folder).slots(8).queue(32).build()?;
    let router = Router::new()
        .route("/ask", post(ask))
        .route("/metrics", get(metrics))
        .layer(DefaultBodyLimit::max(64 << 20))
        .with_state(engine);
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn ask(State(engine): State<Engine>, Json(question): Json<Question>) -> Response {
    // Images and prompts are processed where they are asked, so not in the thread that serves others.
    let started = tokio::task::spawn_blocking(move || start(&engine, question)).await;
    match started {
        Ok(Ok(answer)) => Sse::new(events(answer)).into_response(),
        Ok(Err(error)) => (status(error.kind()), error.to_string()).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn start(engine: &Engine, question: Question) -> Result<Answer, lfm2vl::Error> {
    // Only data URIs: `load` would open a path of this machine as well, or fetch a URL.
    let uri = |image: String| if image.starts_with("data:") { image } else { "data:,".into() };
    let image = question.image.map(|image| load(&uri(image), &Limits::default()));
    let images: Vec<_> = image.transpose()?.into_iter().collect();
    let mut conversation = Conversation::new();
    conversation.push_with_images(Message::user(question.prompt), images)?;
    let options = GenerationOptions {
        timeout: Some(Duration::from_secs(60)),
        ..engine.generation_options()?
    };
    engine.generate(&mut conversation, &options)
}

/// The answer is a part of the stream: when the client leaves, both are dropped, and the engine stops.
fn events(answer: Answer) -> impl Stream<Item = Result<Event, Infallible>> {
    answer.into_stream().map(|event| {
        Ok(match event {
            Ok(event) => Event::default().data(event.text),
            Err(error) => Event::default().event("error").data(error.to_string()),
        })
    })
}

fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::InvalidRequest | ErrorKind::TooLong => StatusCode::BAD_REQUEST,
        ErrorKind::Busy => StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

async fn metrics(State(engine): State<Engine>) -> String {
    format!("{:#?}\n", engine.metrics())
}
