//! Connections: how many, how long, and what they are answered with.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    let silent = Arc::new(Silent::default());
    loop {
        let permit = match limit.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => {
                silent.dismiss_first();
                // The semaphore is never closed.
                let Ok(permit) = limit.clone().acquire_owned().await else { return };
                permit
            }
        };
        match listener.accept().await {
            Ok(caller) => {
                let (router, access, silent) = (router.clone(), listener.access.clone(), silent.clone());
                tokio::spawn(async move {
                    let (number, dismissed) = silent.add();
                    let twin = silent.clone();
                    let ask = move || twin.remove(number);
                    let talk = async {
                        match caller.welcome().await {
                            Ok(stream) => converse(stream, access, router, ask).await,
                            Err(error) => tracing::debug!("a caller is not let in: {error}"),
                        }
                    };
                    tokio::select! {
                        () = talk => {}
                        () = dismissed.notified() => tracing::debug!("a caller who asked nothing makes room"),
                    }
                    silent.remove(number);
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

/// Those who are connected and have not asked anything yet, in the order in which they came. Attack: clients without number who
/// begin to ask and never end. Where there is no place left, the first of them has to go.
#[derive(Default)]
struct Silent(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    next: u64,
    callers: BTreeMap<u64, Arc<Notify>>,
}

impl Silent {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more: its number, and what tells it to go.
    fn add(&self) -> (u64, Arc<Notify>) {
        let (mut waiting, dismissed) = (self.lock(), Arc::new(Notify::new()));
        let number = waiting.next;
        waiting.next += 1;
        waiting.callers.insert(number, dismissed.clone());
        (number, dismissed)
    }

    /// It has asked, or is gone.
    fn remove(&self, number: u64) {
        self.lock().callers.remove(&number);
    }

    fn dismiss_first(&self) {
        if let Some((_, first)) = self.lock().callers.pop_first() {
            first.notify_one();
        }
    }
}

/// One connection, request after request. `ask` is called for each, once it is whole.
async fn converse(
    stream: Box<dyn Stream>,
    access: Access,
    router: Router,
    ask: impl Fn() + Clone + Send + 'static,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let asked = bodies::Asked::new(ask.clone());
        let (router, refusal) = (router.clone(), access.refusal(&request));
        async move {
            if let Some(refusal) = refusal {
                return Ok(refusal);
            }
            let answer: Result<Response<Body>, Infallible> =
                match docker::unversioned(request.map(|body| bodies::in_time(body, asked))) {
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
