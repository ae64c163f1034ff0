//! Which of an index's manifests is the one for a platform.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::Descriptor;

use crate::error::Error;

/// An operating system on a processor, in the words of Go (OCI image specification 1.1, `image-index.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Platform {
    /// What this host runs.
    pub fn host() -> Platform {
        Platform { os: "linux".to_string(), architecture: host_architecture().to_string(), variant: None }
    }

    /// The manifest for this platform: one of the wanted variant, else of the variant nearest to what a processor without a
    /// name of its own has. A manifest that says nothing is taken when there is no other.
    pub fn choose<'a>(&self, manifests: &'a [Descriptor]) -> Option<&'a Descriptor> {
        let fits = |d: &&Descriptor| {
            d.platform().as_ref().is_some_and(|p| {
                p.os().to_string() == self.os && p.architecture().to_string() == self.architecture
            })
        };
        let rank = |d: &&Descriptor| self.rank(d.platform().as_ref().and_then(|p| p.variant().as_deref()));
        let best = manifests.iter().filter(fits).filter(|d| rank(d).is_some()).min_by_key(rank);
        let only = match manifests {
            [only] if only.platform().is_none() => Some(only),
            _ => None,
        };
        best.or(only)
    }

    /// How well a variant fits, 0 best; nothing if not at all.
    fn rank(&self, variant: Option<&str>) -> Option<usize> {
        // What a processor is taken for when nobody says, and what it can run as well.
        let order: &[&str] = match self.architecture.as_str() {
            "arm" => &["v7", "v6", "v5"],
            "arm64" => &["v8"],
            "amd64" => &["v1"],
            _ => &[],
        };
        let base = order.first().copied();
        let (wanted, offered) = (self.variant.as_deref().or(base), variant.or(base));
        if wanted == offered {
            return Some(usize::from(variant != self.variant.as_deref()));
        }
        let start = order.iter().position(|v| Some(*v) == wanted)?;
        let at = order.iter().position(|v| Some(*v) == offered)?;
        (at > start).then(|| at - start + 1)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// `os/architecture[/variant]`
    fn from_str(text: &str) -> Result<Self, Error> {
        let word = |word: &&str| {
            !word.is_empty() && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        };
        let words: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match words[..] {
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => ("", "", None),
        };
        if ![os, architecture].iter().chain(&variant).all(word) {
            let what = format!("platform {:?}", text.chars().take(100).collect::<String>());
            return Err(Error::invalid(what, "it is os/architecture[/variant], such as linux/arm64"));
        }
        let own = str::to_string;
        Ok(Platform { os: own(os), architecture: own(architecture), variant: variant.map(own) })
    }
}

/// The host's processor in the words of the OCI specification (Go's GOARCH).
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "powerpc64" => "ppc64",
        "loongarch64" => "loong64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifests(platforms: &[&str]) -> Vec<Descriptor> {
        let manifest = |(size, text): (usize, &&str)| {
            let mut value = serde_json::json!({
                "mediaType": crate::media::MANIFEST,
                "digest": format!("sha256:{}", "0".repeat(64)),
                "size": size,
            });
            let words: Vec<&str> = text.split('/').collect();
            if let [os, architecture, variant @ ..] = &words[..] {
                value["platform"] = serde_json::json!({ "os": os, "architecture": architecture });
                if let [variant] = variant {
                    value["platform"]["variant"] = (*variant).into();
                }
            }
            serde_json::from_value(value).unwrap()
        };
        platforms.iter().enumerate().map(manifest).collect()
    }

    fn chosen(wanted: &str, platforms: &[&str]) -> Option<usize> {
        let all = manifests(platforms);
        wanted.parse::<Platform>().unwrap().choose(&all).map(|d| d.size() as usize)
    }

    #[test]
    fn the_nearest_variant_is_chosen() {
        let all = [
            "unknown/unknown",
            "linux/arm/v5",
            "linux/arm/v7",
            "linux/arm64/v8",
            "linux/amd64",
            "windows/amd64",
        ];
        for (wanted, at) in [
            ("linux/amd64", Some(4)),
            ("windows/amd64", Some(5)),
            ("linux/arm64", Some(3)),
            ("linux/arm64/v8", Some(3)),
            ("linux/arm64/v9", None),
            ("linux/arm", Some(2)),
            ("linux/arm/v6", Some(1)),
            ("linux/arm/v7", Some(2)),
            ("linux/s390x", None),
        ] {
            assert_eq!(chosen(wanted, &all), at, "{wanted}");
        }
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3", "linux/amd64"]), Some(1));
        assert_eq!(chosen("linux/amd64/v3", &["linux/amd64", "linux/amd64/v3"]), Some(1));
        assert_eq!(chosen("linux/amd64", &["linux/amd64/v3"]), None);
    }

    #[test]
    fn a_manifest_without_a_platform_is_taken_when_it_is_alone() {
        assert_eq!(chosen("linux/amd64", &[""]), Some(0));
        assert_eq!(chosen("linux/amd64", &["", ""]), None);
        assert_eq!(chosen("linux/amd64", &["linux/arm64"]), None);
    }

    #[test]
    fn a_platform_has_two_or_three_words() {
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
        for text in ["", "linux", "linux/", "/amd64", "a/b/c/d", "Linux/amd64", "linux/am d64"] {
            assert!(text.parse::<Platform>().is_err(), "{text:?}");
        }
        assert!(Platform::host().to_string().starts_with("linux/"));
    }
}
