//! Connections: how many, how long, and what they are answered with.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;

use crate::access::Access;
use crate::backend::Backend;
use crate::listen::{Listen, Listener, Stream};
use crate::{bodies, console, docker, scratch};

/// A request's head is here by then. Attack: a client that sends a byte a minute.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Threads for calls that wait: attachments, waits and pulls take one each as long as they last.
const MAX_BLOCKING_THREADS: usize = 2048;

/// Asks a server to end.
#[derive(Clone, Debug)]
pub struct End(Arc<Notify>);

impl End {
    /// It takes no new connection, and ends those it has. May be called from a thread that waits for a signal.
    pub fn now(&self) {
        self.0.notify_one();
    }
}

/// What ends a server, and what it waits for.
pub fn end() -> (End, impl Future<Output = ()> + Send + 'static) {
    let notify = Arc::new(Notify::new());
    (End(notify.clone()), async move { notify.notified().await })
}

/// What is served, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// One listener at least.
    pub listen: Vec<Listen>,
    /// The web console is there.
    pub console: bool,
}

/// Serves until `end` is over. `listening` is called once connections are taken, with where that is: an address for each of
/// `service.listen`, with the token where there is one.
///
/// # Errors
/// A socket cannot be made, or another server has it.
pub fn serve(
    backend: impl Backend,
    service: &Service,
    listening: impl FnOnce(&[String]),
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()?;
    scratch::clear(backend.store().root());
    let served = runtime.block_on(async {
        let router = docker::router(Arc::new(backend)).merge(console::router(service.console));
        // All of them before one is served: a server that cannot have all ends.
        let mut listeners = Vec::new();
        for listen in &service.listen {
            listeners.push(Arc::new(Listener::bind(listen).await?));
        }
        for listener in &listeners {
            tokio::spawn(accept(listener.clone(), router.clone()));
        }
        let addresses: Vec<String> = listeners.iter().map(|listener| listener.address.clone()).collect();
        listening(&addresses);
        end.await;
        Ok(())
    });
    // Those who wait for a workload's end wait no more.
    runtime.shutdown_background();
    served
}

async fn accept(listener: Arc<Listener>, router: Router) {
    let limit = Arc::new(Semaphore::new(listener.max_connections()));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(caller) => {
                let (router, access) = (router.clone(), listener.access.clone());
                tokio::spawn(async move {
                    match caller.welcome().await {
                        Ok(stream) => converse(stream, access, router).await,
                        Err(error) => tracing::debug!("a caller is not let in: {error}"),
                    }
                    drop(permit);
                });
            }
            // No open file is left, say: that passes.
            Err(error) => {
                tracing::warn!("accept a connection: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// One connection, request after request.
async fn converse(stream: Box<dyn Stream>, access: Access, router: Router) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (router, refusal) = (router.clone(), access.refusal(&request));
        async move {
            if let Some(refusal) = refusal {
                return Ok(refusal);
            }
            let answer: Result<Response<Body>, Infallible> =
                match docker::unversioned(request.map(bodies::in_time)) {
                    Ok(request) => router.oneshot(request).await,
                    Err(error) => Ok(error.into_response()),
                };
            answer
        }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!("a connection ended: {error}");
    }
}
