//! Sockets and connections.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore};
use tower::ServiceExt;

use crate::backend::Backend;
use crate::docker;

/// Connections at once; more wait. Attack: clients without number.
const MAX_CONNECTIONS: usize = 1024;
/// A request's head is here by then. Attack: a client that sends a byte a minute.
const HEAD_TIMEOUT: Duration = Duration::from_secs(20);
/// Bytes of a request's head.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// Threads for calls that wait: attachments, waits and pulls take one each as long as they last.
const MAX_BLOCKING_THREADS: usize = 2048;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system, which its owner and group may connect to.
    Unix(PathBuf),
}

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

/// Serves until `end` is over. `listening` is called once connections are taken.
///
/// # Errors
/// A socket cannot be made, or another server has it.
pub fn serve(
    backend: impl Backend,
    listen: &[Listen],
    listening: impl FnOnce(),
    end: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MAX_BLOCKING_THREADS)
        .thread_keep_alive(Duration::from_secs(2))
        .enable_all()
        .build()?;
    let served = runtime.block_on(async {
        let router = docker::router(Arc::new(backend));
        let limit = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        // All of them before one is served: a server that cannot have all ends.
        let sockets = listen.iter().map(Socket::bind).collect::<io::Result<Vec<_>>>()?;
        let mut files = Vec::new();
        for Socket { listener, file } in sockets {
            files.push(file);
            tokio::spawn(accept(listener, router.clone(), limit.clone()));
        }
        listening();
        end.await;
        Ok(())
    });
    // Those who wait for a workload's end wait no more.
    runtime.shutdown_background();
    served
}

struct Socket {
    listener: UnixListener,
    file: SocketFile,
}

/// A socket's place in the file system, which goes with the server.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Socket {
    fn bind(listen: &Listen) -> io::Result<Socket> {
        let Listen::Unix(path) = listen;
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(named)?;
        }
        remove_stale(path).map_err(named)?;
        let listener = UnixListener::bind(path).map_err(named)?;
        // Whoever may connect may do all that this user may.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(named)?;
        Ok(Socket { listener, file: SocketFile(path.clone()) })
    }
}

/// Removes the socket of a server that was killed.
fn remove_stale(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and no socket"));
        }
        Ok(_) => {}
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another server answers there"));
    }
    std::fs::remove_file(path)
}

async fn accept(listener: UnixListener, router: Router, limit: Arc<Semaphore>) {
    loop {
        // The semaphore is never closed.
        let Ok(permit) = limit.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let router = router.clone();
                tokio::spawn(async move {
                    converse(stream, router).await;
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
async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let router = router.clone();
        async move {
            let answer: Result<Response<Body>, Infallible> = match docker::unversioned(request) {
                Ok(request) => router.oneshot(request.map(Body::new)).await,
                Err(error) => Ok(axum::response::IntoResponse::into_response(error)),
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
