//! Where a server listens: the flags, and what they mean together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use api::{Listen, Service, Tls};
use clap::Args;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome};

/// Where root's server listens.
const DEFAULT_SOCKET: &str = "/run/strata/docker.sock";

/// Where to listen, and what is there.
#[derive(Args)]
pub struct Options {
    /// Where to listen; may be repeated [default: unix:///run/strata/docker.sock for root, else in the user's runtime folder]
    ///
    /// unix:///PATH is a socket. tcp://HOST:PORT is for clients with a certificate, and needs the three --tls flags; docker
    /// --tlsverify speaks to it. tcp://127.0.0.1:PORT without them is for whoever knows a token, and needs --console: the address
    /// to open in a browser is printed once. http://127.0.0.1:PORT is that beside a port with TLS. Port 0 is one that is free.
    #[arg(long, value_name = "ADDRESS", value_parser = parse)]
    listen: Vec<Place>,
    /// Certificates of those who sign the clients' certificates: PEM
    #[arg(long, value_name = "FILE", alias = "tlscacert", requires_all = ["tls_cert", "tls_key"])]
    tls_ca: Option<PathBuf>,
    /// The server's own certificate: PEM
    #[arg(long, value_name = "FILE", alias = "tlscert", requires_all = ["tls_ca", "tls_key"])]
    tls_cert: Option<PathBuf>,
    /// The private key of that certificate: PEM
    #[arg(long, value_name = "FILE", alias = "tlskey", requires_all = ["tls_ca", "tls_cert"])]
    tls_key: Option<PathBuf>,
    /// Serve the web console too, at /console/
    ///
    /// Without --listen it is at a free port of 127.0.0.1, beside the socket. Behind a proxy in front of the socket it is for
    /// whoever the proxy lets in: the proxy has to ask who comes, and to leave the Host of a request as it is.
    #[arg(long)]
    console: bool,
}

/// An address as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Unix(PathBuf),
    Tcp(String),
    Http(SocketAddr),
}

fn parse(text: &str) -> Result<Place, String> {
    let wrong =
        || format!("{text:?} is not unix:// and an absolute path, tcp://HOST:PORT, or http://127.0.0.1:PORT");
    match text.split_once("://").ok_or_else(wrong)? {
        ("unix", path) if path.starts_with('/') => Ok(Place::Unix(path.into())),
        ("tcp", place) => {
            let (host, port) = place.rsplit_once(':').ok_or_else(wrong)?;
            let is_right = !host.is_empty() && !place.contains('/') && port.parse::<u16>().is_ok();
            is_right.then(|| Place::Tcp(place.to_owned())).ok_or_else(wrong)
        }
        ("http", place) => loopback(place).map(Place::Http).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

/// An address that only this host reaches.
fn loopback(place: &str) -> Option<SocketAddr> {
    let place = match place.strip_prefix("localhost:") {
        Some(port) => SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?)),
        None => place.parse().ok()?,
    };
    place.ip().is_loopback().then_some(place)
}

impl Options {
    /// What is to be served.
    ///
    /// # Errors
    /// A port would be open to everybody.
    pub fn service(&self) -> Outcome<Service> {
        let mut listen = self.listen.iter().map(|place| self.meaning(place)).collect::<Outcome<Vec<_>>>()?;
        if listen.is_empty() {
            listen.push(default_socket()?);
            if self.console {
                listen.push(Listen::Loopback(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))));
            }
        }
        Ok(Service { listen, console: self.console })
    }

    fn tls(&self) -> Option<Tls> {
        Some(Tls { ca: self.tls_ca.clone()?, cert: self.tls_cert.clone()?, key: self.tls_key.clone()? })
    }

    fn meaning(&self, place: &Place) -> Outcome<Listen> {
        let refuse = |text: String, hint: &str| Err(Failure::new(text).exit(Exit::Usage).hint(hint));
        let address = match place {
            Place::Unix(path) => return Ok(Listen::Unix(path.clone())),
            Place::Tcp(place) => match (self.tls(), loopback(place)) {
                (Some(tls), _) => return Ok(Listen::Tls(place.clone(), tls)),
                (None, Some(address)) => address,
                (None, None) => {
                    return refuse(
                        format!("serve: tcp://{place} would let everybody in who reaches it"),
                        "name the certificates: --tls-ca ca.pem --tls-cert cert.pem --tls-key key.pem",
                    );
                }
            },
            Place::Http(address) => *address,
        };
        if !self.console {
            return refuse(
                format!("serve: {address} without certificates is for the console"),
                "--console, or --tls-ca, --tls-cert and --tls-key",
            );
        }
        Ok(Listen::Loopback(address))
    }
}

fn default_socket() -> Outcome<Listen> {
    if rustix::process::geteuid().is_root() {
        return Ok(Listen::Unix(DEFAULT_SOCKET.into()));
    }
    let folder = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let path = folder.map(|folder| folder.join("strata/docker.sock"));
    path.map(Listen::Unix).ok_or_else(|| {
        Failure::new("serve: XDG_RUNTIME_DIR is not set").exit(Exit::Usage).hint("--listen unix:///a/path")
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn service(line: &str) -> Result<Service, String> {
        let words = std::iter::once("serve").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.options.service().map_err(|failure| failure.to_string())
    }

    const TLS: &str = "--tls-ca a --tls-cert c --tls-key k";

    #[test]
    fn addresses_are_what_they_say() {
        let tls = || Tls { ca: "a".into(), cert: "c".into(), key: "k".into() };
        let one = |line: &str| service(line).map(|service| service.listen);
        assert_eq!(one("--listen unix:///a/b"), Ok(vec![Listen::Unix("/a/b".into())]));
        let both = one(&format!("--listen unix:///a --listen tcp://[::]:2376 {TLS}"));
        assert_eq!(both, Ok(vec![Listen::Unix("/a".into()), Listen::Tls("[::]:2376".to_owned(), tls())]));
        let loopback = |port| Listen::Loopback(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        assert_eq!(one("--console --listen tcp://127.0.0.1:80"), Ok(vec![loopback(80)]));
        let both = one(&format!("--console {TLS} --listen http://localhost:0 --listen tcp://127.0.0.1:1"));
        assert_eq!(both, Ok(vec![loopback(0), Listen::Tls("127.0.0.1:1".to_owned(), tls())]));
        for wrong in [
            "",
            "unix://a",
            "/a/b",
            "tcp://",
            "tcp://host",
            "tcp://:1",
            "tcp://a:b",
            "http://10.0.0.1:80",
            "fd://",
        ] {
            assert!(service(&format!("--listen={wrong}")).is_err(), "{wrong}");
        }
    }

    #[test]
    fn no_port_is_open_to_everybody() {
        for line in [
            "--listen tcp://0.0.0.0:2375",
            "--listen tcp://0.0.0.0:2375 --console",
            "--listen tcp://127.0.0.1:2375",
            "--listen tcp://127.0.0.1:2375 --tls-cert c --tls-key k",
            "--listen tcp://name:2375 --console",
        ] {
            assert!(service(line).is_err(), "{line}");
        }
    }
}
