//! Connections.

use std::{future::Future, pin::pin, time::Duration};

use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
    service::TowerToHyperService,
};
use tokio::net::TcpListener;

use crate::service::Service;

/// Time in which the head of a request has to come, also the next one on an idle connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// Time for the last bytes of answers when all have ended.
const LAST_BYTES: Duration = Duration::from_secs(10);

/// Serves until `stop` ends. From then on new requests are told that the server is stopping, which `/readyz` says as
/// well, and this returns when all answers have ended, but not before `linger` has passed: whoever spreads requests
/// over several servers has so long to notice.
pub async fn serve(
    listener: TcpListener,
    service: Service,
    stop: impl Future<Output = ()>,
    linger: Duration,
) {
    let router = TowerToHyperService::new(service.router());
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    let connections = GracefulShutdown::new();
    let stopped = async {
        stop.await;
        service.stop();
        tracing::info!("stopping when all answers have ended");
        tokio::time::sleep(linger).await;
        service.answers_ended().await;
    };
    let mut stopped = pin!(stopped);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stopped => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // As where the system has no more file descriptors; later it may have some.
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Tokens are to go out at once.
        let _ = stream.set_nodelay(true);
        let connection = builder.serve_connection(TokioIo::new(stream), router.clone());
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
        });
    }
    drop(listener);
    // What is left are the last bytes of answers, which nobody may read, and connections without a request.
    if tokio::time::timeout(LAST_BYTES, connections.shutdown()).await.is_err() {
        tracing::warn!("some clients have not read their answers");
    }
}
