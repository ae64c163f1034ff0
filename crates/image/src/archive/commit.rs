//! Config and manifest for a layer that has none, and the name that makes them an image.

use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::import::Layer;
use crate::error::{Error, Result};
use crate::image::Image;
use crate::platform::host_architecture;
use crate::reference::Reference;
use crate::store::{Adding, Store};

/// How an image of one layer came to be.
pub(crate) struct Made {
    /// For the image's history.
    pub(crate) by: String,
    /// The command of the image.
    pub(crate) cmd: Vec<String>,
    /// Seconds since 1970.
    pub(crate) created_s: u64,
}

impl Made {
    pub(crate) fn now(by: String, cmd: &[&str]) -> Made {
        Made { by, cmd: cmd.iter().map(|arg| arg.to_string()).collect(), created_s: source_date() }
    }
}

/// The time to stamp things with: `SOURCE_DATE_EPOCH` if it is set (reproducible-builds.org), else now.
pub fn source_date() -> u64 {
    let set = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    set.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()))
}

impl Store {
    /// Makes an image of one layer and names it.
    pub(super) fn commit_layer(
        &self,
        adding: &Adding,
        name: &Reference,
        layer: &Layer,
        made: &Made,
    ) -> Result<Image> {
        let created = rfc3339(made.created_s);
        let config = json!({
            "created": created,
            "architecture": host_architecture(),
            "os": "linux",
            "config": {
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
                "Cmd": made.cmd,
            },
            "rootfs": { "type": "layers", "diff_ids": [layer.diff_id.to_string()] },
            "history": [{ "created": created, "created_by": made.by }],
        });
        let config = to_bytes(&config)?;
        let config_digest = self.add_blob(adding, &config)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config_digest.to_string(),
                "size": config.len(),
            },
            "layers": [{
                "mediaType": layer.media_type,
                "digest": layer.digest.to_string(),
                "size": layer.size,
            }],
        });
        let manifest = to_bytes(&manifest)?;
        let digest = self.add_blob(adding, &manifest)?;
        self.set_name(adding, name, &digest)?;
        self.image(name)
    }
}

pub(super) fn to_bytes(value: &Value) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(Error::json("new document"))
}

/// A time in UTC as RFC 3339 has it; the end of the year 9999 for any later one.
pub fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    time.unwrap_or(Timestamp::MAX).to_string()
}

#[cfg(test)]
mod tests {
    use super::rfc3339;

    #[test]
    fn times_are_calendar_dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_795_243_226), "2026-11-21T06:40:26Z");
    }
}
