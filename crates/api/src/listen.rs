//! Where a server listens, and how it welcomes who comes.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio_rustls::TlsAcceptor;

use crate::access::{Access, Door};
use crate::tls::Tls;

/// A connection speaks TLS by then. Attack: clients that connect and say nothing.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections at once on a socket; with more, who asks nothing goes or the others wait, and nobody on another listener does.
/// Attack: clients without number.
const MAX_CONNECTIONS: usize = 1024;
/// As [`MAX_CONNECTIONS`], on a port, where those connect too who are not let in: not so many that no file is left for others.
const MAX_PORT_CONNECTIONS: usize = 256;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A socket in the file system, which its owner and group may connect to.
    Unix(PathBuf),
    /// A port, for those who show a certificate: `HOST:PORT`.
    Tls(String, Tls),
    /// A port of the loopback, for those who know a token that is new each time. Port 0 is one that is free.
    Loopback(SocketAddr),
}

/// What connections come in at.
pub(crate) struct Listener {
    socket: Socket,
    /// Who may speak.
    pub(crate) access: Access,
    /// For the user: where it is, or what to open.
    pub(crate) address: String,
    /// Goes with it.
    _file: Option<SocketFile>,
}

enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// A connection.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Somebody who has connected, and may have to show who it is.
pub(crate) enum Caller {
    Known(Box<dyn Stream>),
    Stranger(TcpStream, TlsAcceptor),
}

impl Caller {
    /// The connection of one who may speak.
    ///
    /// # Errors
    /// It shows no certificate that counts, or takes too long about it.
    pub(crate) async fn welcome(self) -> io::Result<Box<dyn Stream>> {
        match self {
            Caller::Known(stream) => Ok(stream),
            Caller::Stranger(stream, tls) => {
                let late = |_| io::Error::from(io::ErrorKind::TimedOut);
                let stream =
                    tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await.map_err(late)??;
                Ok(Box::new(stream))
            }
        }
    }
}

impl Listener {
    /// Begins to listen.
    ///
    /// # Errors
    /// The place is taken, cannot be had, or is none that may be had: the message names it.
    pub(crate) async fn bind(listen: &Listen) -> io::Result<Listener> {
        match listen {
            Listen::Unix(path) => {
                let (listener, file) = bind_file(path).map_err(named(&path.display()))?;
                let address = format!("unix://{}", path.display());
                Ok(Listener {
                    socket: Socket::Unix(listener),
                    access: Access::Connected,
                    address,
                    _file: Some(file),
                })
            }
            Listen::Tls(place, tls) => {
                let acceptor = tls.acceptor().map_err(io::Error::other)?;
                let listener = TcpListener::bind(place.as_str()).await.map_err(named(place))?;
                let address = format!("tcp://{}", listener.local_addr()?);
                let socket = Socket::Tls(listener, acceptor);
                Ok(Listener { socket, access: Access::Connected, address, _file: None })
            }
            Listen::Loopback(place) => {
                if !place.ip().is_loopback() {
                    return Err(named(place)(io::Error::other(
                        "a token guards addresses of the loopback only",
                    )));
                }
                let listener = TcpListener::bind(place).await.map_err(named(place))?;
                let place = listener.local_addr()?;
                let door = Door::new(place.port())?;
                let address = door.url(place);
                let access = Access::Token(Arc::new(door));
                Ok(Listener { socket: Socket::Tcp(listener), access, address, _file: None })
            }
        }
    }

    /// How many may be connected at once.
    pub(crate) fn max_connections(&self) -> usize {
        match self.socket {
            Socket::Unix(_) => MAX_CONNECTIONS,
            Socket::Tcp(_) | Socket::Tls(..) => MAX_PORT_CONNECTIONS,
        }
    }

    /// The next who comes.
    pub(crate) async fn accept(&self) -> io::Result<Caller> {
        // Answers are written when they are there, in pieces as they are: none waits for the next.
        let quick = |stream: TcpStream| stream.set_nodelay(true).map(|()| stream);
        match &self.socket {
            Socket::Unix(listener) => Ok(Caller::Known(Box::new(listener.accept().await?.0))),
            Socket::Tcp(listener) => Ok(Caller::Known(Box::new(quick(listener.accept().await?.0)?))),
            Socket::Tls(listener, tls) => {
                Ok(Caller::Stranger(quick(listener.accept().await?.0)?, tls.clone()))
            }
        }
    }
}

fn named(place: &impl std::fmt::Display) -> impl FnOnce(io::Error) -> io::Error {
    move |error| io::Error::new(error.kind(), format!("{place}: {error}"))
}

/// A socket's place in the file system, which goes with the server.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn bind_file(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder)?;
    }
    remove_stale(path)?;
    let listener = UnixListener::bind(path)?;
    // Whoever may connect may do all that this user may.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    Ok((listener, SocketFile(path.to_owned())))
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
