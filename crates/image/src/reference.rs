//! Image names: `debian`, `debian:12`, `registry.example:5000/team/app:v1`.
//!
//! A name is `[host[:port]/]path[:tag]`; without a tag it means `latest`. Registries come later: the host part is kept as it is,
//! and a name without a host is local. A name pinned by digest (`debian@sha256:…`) is not accepted yet.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The name of an image, normalised: it always carries a tag.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    name: String,
    tag: String,
}

impl Reference {
    /// The part before the tag, e.g. `registry.example:5000/team/app`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag, `latest` when none was given.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The registry host, if the name has one: a first component with a dot, a colon, or `localhost`.
    pub fn registry(&self) -> Option<&str> {
        let (first, _) = self.name.split_once('/')?;
        (first.contains(['.', ':']) || first == "localhost").then_some(first)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.tag)
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let bad = |reason| Error::BadName { name: text.to_string(), reason };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > 255 {
            return Err(bad("it is longer than 255 bytes"));
        }
        if text.contains('@') {
            return Err(bad("names by digest are not supported"));
        }
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last..].find(':') {
            Some(colon) => (&text[..last + colon], &text[last + colon + 1..]),
            None => (text, "latest"),
        };
        if !valid_tag(tag) {
            return Err(bad(
                "a tag is up to 128 letters, digits, '_', '-', '.' and begins with none of '-', '.'",
            ));
        }
        let components: Vec<&str> = name.split('/').collect();
        let has_host = components.len() > 1;
        for (i, component) in components.iter().enumerate() {
            let ok = if i == 0 && has_host { valid_host(component) } else { valid_component(component) };
            if !ok {
                return Err(bad(
                    "a component is lower-case letters and digits, joined by '.', '_', '__' or '-'",
                ));
            }
        }
        Ok(Reference { name: name.to_string(), tag: tag.to_string() })
    }
}

fn valid_tag(tag: &str) -> bool {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !tag.is_empty() && tag.len() <= 128 && !tag.starts_with(['-', '.']) && tag.bytes().all(ok)
}

fn valid_component(component: &str) -> bool {
    let alnum = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = component.as_bytes();
    alnum(bytes.first())
        && alnum(bytes.last())
        && bytes.iter().all(|b| alnum(Some(b)) || matches!(b, b'.' | b'_' | b'-'))
        && !component.contains("..")
}

fn valid_host(host: &str) -> bool {
    let (name, port) = host.split_once(':').unwrap_or((host, "1"));
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let alnum = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = name.as_bytes();
    alnum(bytes.first()) && alnum(bytes.last()) && name.bytes().all(ok) && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_without_a_tag_means_latest() {
        let normal = |text: &str| text.parse::<Reference>().unwrap().to_string();
        assert_eq!(normal("debian"), "debian:latest");
        assert_eq!(normal("debian:12"), "debian:12");
        assert_eq!(normal("localhost:5000/a/b"), "localhost:5000/a/b:latest");
        assert_eq!(normal("reg.example/a__b/c-d.e:V_1.0"), "reg.example/a__b/c-d.e:V_1.0");
    }

    #[test]
    fn the_registry_is_the_first_component_that_looks_like_a_host() {
        let registry = |text: &str| text.parse::<Reference>().unwrap().registry().map(str::to_string);
        assert_eq!(registry("team/app"), None);
        assert_eq!(registry("localhost/app"), Some("localhost".into()));
        assert_eq!(registry("reg.example:99/app"), Some("reg.example:99".into()));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "Debian",
            "a//b",
            "../etc",
            "a:",
            "a:b:c",
            "a@sha256:00",
            "/a",
            "a/",
            "a:.x",
            "a b",
            "host:99999/x",
            "é",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?} was accepted");
        }
        assert!("a".repeat(256).parse::<Reference>().is_err());
    }
}
