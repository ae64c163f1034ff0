//! Image names: `debian`, `debian:12`, `registry.example:5000/team/app:v1`, `debian@sha256:…`.
//!
//! Source: the grammar of Docker's references (`github.com/distribution/reference`), which every registry and tool shares:
//! `[host[:port]/]path[:tag][@digest]`. A first component with a dot or a colon, with an upper-case letter, or `localhost`,
//! is a host; a name without one means docker.io, where a path of one component lies below `library/`. Names are kept in
//! Docker's familiar form, so that `debian` and `docker.io/library/debian:latest` are one name. A tag beside a digest says
//! nothing more and is dropped. Known omission: digests other than SHA-256.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::Error;

/// The registry of names without a host.
const DEFAULT_DOMAIN: &str = "docker.io";
/// Another name of it, from before the second version of its protocol.
const OLD_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Where paths of one component lie in it.
const OFFICIAL: &str = "library/";
/// Bytes of host and path together, as registries have it.
const MAX_NAME_BYTES: usize = 255;

/// The name of an image, normalised: the familiar name, and a tag or a digest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    name: String,
    version: Version,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    /// The part before tag or digest, e.g. `debian` or `registry.example:5000/team/app`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, `latest` when neither tag nor digest was given.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest of the manifest or index that the name is pinned to.
    pub fn digest(&self) -> Option<Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(*digest),
        }
    }

    /// The registry's host and port, `docker.io` when the name has none.
    pub fn domain(&self) -> &str {
        split_host(&self.name).0.unwrap_or(DEFAULT_DOMAIN)
    }

    /// The path inside the registry: `library/debian` for `debian`.
    pub fn repository(&self) -> String {
        let (host, path) = split_host(&self.name);
        let official = host.is_none() && !path.contains('/');
        if official { format!("{OFFICIAL}{path}") } else { path.to_string() }
    }

    /// The name with its host written out: `docker.io/library/debian:latest`.
    pub fn full(&self) -> String {
        format!("{}/{}{}", self.domain(), self.repository(), self.version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.name, self.version)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).map_err(|reason| Error::BadName { name: shown(text), reason })
    }
}

/// As much of a name as an error shows.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(300).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (text, digest) = match text.split_once('@') {
        Some((name, digest)) => {
            let digest = digest.parse().map_err(|_| "a digest is sha256: and 64 hexadecimal digits")?;
            (name, Some(digest))
        }
        None => (text, None),
    };
    let last = text.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match text[last..].find(':') {
        Some(colon) => (&text[..last + colon], &text[last + colon + 1..]),
        None => (text, "latest"),
    };
    if !valid_tag(tag) {
        return Err("a tag is up to 128 letters, digits, '_', '-', '.' and begins with none of '-', '.'");
    }
    let (host, path) = split_host(name);
    if !host.is_none_or(valid_host) {
        return Err("a host is letters, digits, '.' and '-', or an address in brackets, and a port");
    }
    if !path.split('/').all(valid_component) {
        return Err("a component is lower-case letters and digits, joined by '.', '_', '__' or '-'");
    }
    if host.is_none() && path.len() == 64 && Digest::from_hex(path).is_some() {
        return Err("it looks like the digest of an image");
    }
    let version = digest.map_or_else(|| Version::Tag(tag.to_string()), Version::Digest);
    let reference = Reference { name: familiar(host, path).unwrap_or(name).to_string(), version };
    if reference.domain().len() + 1 + reference.repository().len() > MAX_NAME_BYTES {
        return Err("with its host it is longer than 255 bytes");
    }
    Ok(reference)
}

/// The short form of a path in the default registry, where there is one that means the same.
fn familiar<'a>(host: Option<&str>, path: &'a str) -> Option<&'a str> {
    if !host.is_none_or(|host| host == DEFAULT_DOMAIN || host == OLD_DEFAULT_DOMAIN) {
        return None;
    }
    let short = path.strip_prefix(OFFICIAL).filter(|rest| !rest.contains('/')).unwrap_or(path);
    split_host(short).0.is_none().then_some(short)
}

/// The registry's host, if the name has one, and the path.
fn split_host(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (Some(first), rest),
        _ => (None, name),
    }
}

fn looks_like_host(component: &str) -> bool {
    component == "localhost"
        || component.contains(['.', ':'])
        || component.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn valid_tag(tag: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['-', '.']) && tag.bytes().all(ok)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn valid_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = |b: Option<u8>| b.is_some_and(alnum);
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends(component.bytes().next())
        && ends(component.bytes().next_back())
        && separators.into_iter().all(|s| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}

fn valid_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => (&host[..colon], Some(&host[colon + 1..])),
        _ => (host, None),
    };
    if !port.is_none_or(|port| !port.starts_with('+') && port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return false;
    }
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<std::net::Ipv6Addr>().is_ok();
    }
    name.split('.').all(|label| {
        let ok = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ok && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Reference {
        text.parse().unwrap_or_else(|e| panic!("{text:?}: {e}"))
    }

    #[test]
    fn a_name_without_a_tag_means_latest() {
        for (text, want) in [
            ("debian", "debian:latest"),
            ("debian:12", "debian:12"),
            ("localhost:5000/a/b", "localhost:5000/a/b:latest"),
            ("reg.example/a__b/c---d.e:V_1.0", "reg.example/a__b/c---d.e:V_1.0"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[fe80::1]/a:1", "[fe80::1]/a:1"),
        ] {
            assert_eq!(parsed(text).to_string(), want);
        }
    }

    #[test]
    fn short_names_are_resolved_as_docker_resolves_them() {
        for (text, familiar, full) in [
            ("debian", "debian:latest", "docker.io/library/debian:latest"),
            ("library/debian:12", "debian:12", "docker.io/library/debian:12"),
            ("docker.io/debian", "debian:latest", "docker.io/library/debian:latest"),
            ("index.docker.io/library/debian", "debian:latest", "docker.io/library/debian:latest"),
            ("team/app", "team/app:latest", "docker.io/team/app:latest"),
            ("docker.io/library/team/app", "library/team/app:latest", "docker.io/library/team/app:latest"),
            ("reg.example/debian", "reg.example/debian:latest", "reg.example/debian:latest"),
            ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
            ("Host/app", "Host/app:latest", "Host/app:latest"),
            // The short forms of these would name another host.
            ("docker.io/localhost/x", "docker.io/localhost/x:latest", "docker.io/localhost/x:latest"),
            ("docker.io/a.b/c", "docker.io/a.b/c:latest", "docker.io/a.b/c:latest"),
        ] {
            let name = parsed(text);
            assert_eq!((name.to_string().as_str(), name.full().as_str()), (familiar, full), "{text}");
            assert_eq!(parsed(&name.to_string()), name);
            assert_eq!(parsed(&name.full()), name);
        }
        assert_eq!((parsed("debian").domain(), parsed("a:5/b").domain()), ("docker.io", "a:5"));
    }

    #[test]
    fn a_digest_pins_the_name_and_the_tag_is_dropped() {
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let name = parsed(&format!("debian:12@sha256:{hex}"));
        assert_eq!(name.to_string(), format!("debian@sha256:{hex}"));
        assert_eq!((name.tag(), name.digest().unwrap().hex().as_str()), (None, hex));
        assert_eq!(parsed("debian:12").digest(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        let hex = "a".repeat(64);
        for text in [
            "",
            "Debian",
            "a//b",
            "../etc",
            "a:",
            "a:b:c",
            "a@sha256:00",
            &format!("a@sha512:{hex}"),
            &format!("a@sha256:{hex}@sha256:{hex}"),
            &format!("@sha256:{hex}"),
            &hex,
            "/a",
            "a/",
            "a:.x",
            "a b",
            "a___b",
            "a.-b",
            "a..b",
            "-a",
            "host:99999/x",
            "host:+80/x",
            "host:0/x",
            "host:/x",
            "a..b/x",
            "-a.b/x",
            "a_b.c/x",
            "[::1/x",
            "[x]:1/x",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
        // The host that is not written counts as well.
        let room = MAX_NAME_BYTES - "docker.io/library/".len();
        assert!("a".repeat(room).parse::<Reference>().is_ok());
        assert!("a".repeat(room + 1).parse::<Reference>().is_err());
        let long = "a".repeat(100_000).parse::<Reference>().unwrap_err().to_string();
        assert!(long.len() < 1000, "{long}");
    }
}
