//! `filters`: which of a list a client wants to see.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::params::Params;
use crate::error::{ApiError, Result};
use crate::images;

/// Values by name: one of each name must fit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<String, BTreeSet<String>>);

/// Both forms that clients send: a list, and the map that docker's own writes.
#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(BTreeSet<String>),
    Map(BTreeMap<String, bool>),
}

impl Filters {
    /// Those of a request; `known` are the names that mean anything here.
    ///
    /// # Errors
    /// They are no filters, or there is another one among them.
    pub(super) fn of(params: &Params, known: &[&str]) -> Result<Filters> {
        let Some(text) = params.get("filters") else { return Ok(Filters::default()) };
        let parsed: BTreeMap<String, Values> =
            serde_json::from_str(text).map_err(|error| ApiError::bad(format!("invalid filter: {error}")))?;
        if let Some(name) = parsed.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(ApiError::bad(format!("invalid filter '{name}'")));
        }
        let values = |values| match values {
            Values::List(list) => list,
            Values::Map(map) => map.into_iter().filter(|(_, on)| *on).map(|(value, _)| value).collect(),
        };
        Ok(Filters(parsed.into_iter().map(|(name, list)| (name, values(list))).collect()))
    }

    /// The values of this name.
    pub(super) fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.0.get(name).into_iter().flatten().map(String::as_str)
    }

    /// Whether this name is asked for.
    pub(super) fn has(&self, name: &str) -> bool {
        self.values(name).next().is_some()
    }

    /// Whether nothing of this name is asked for, or one value of it fits.
    pub(super) fn fits(&self, name: &str, fits: impl FnMut(&str) -> bool) -> bool {
        !self.has(name) || self.values(name).any(fits)
    }

    /// Whether no name is asked for, or a part of this one; all of it from its beginning with `^`, up to its end with `$`. That is
    /// what clients write of docker's regular expressions. A slash before a name means nothing.
    pub(super) fn fits_name(&self, name: &str) -> bool {
        self.fits("name", |wanted| {
            let (wanted, from_start) = wanted.strip_prefix('^').map_or((wanted, false), |rest| (rest, true));
            let (wanted, to_end) = wanted.strip_suffix('$').map_or((wanted, false), |rest| (rest, true));
            let wanted = wanted.trim_start_matches('/');
            match (from_start, to_end) {
                (true, true) => name == wanted,
                (true, false) => name.starts_with(wanted),
                (false, true) => name.ends_with(wanted),
                (false, false) => name.contains(wanted),
            }
        })
    }

    /// What fits `until`: what was made, in milliseconds since 1970, before each of its times.
    ///
    /// # Errors
    /// One is no time.
    pub(super) fn until(&self) -> Result<impl Fn(u64) -> bool + use<>> {
        let times = self.values("until").map(images::moment).collect::<std::result::Result<Vec<i64>, _>>()?;
        let first = times.into_iter().min();
        Ok(move |made_ms: u64| first.is_none_or(|time| ((made_ms / 1000) as i64) < time))
    }

    /// Whether all `KEY` and `KEY=VALUE` that are asked for are among `labels`.
    pub(super) fn fits_labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let has = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => label(key) == Some(value),
            None => label(wanted).is_some(),
        };
        self.values("label").all(has) && !self.values("label!").any(has)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(text: &str) -> Result<Filters> {
        Filters::of(&Params::of(&[("filters", text)]), &["name", "label", "label!"])
    }

    #[test]
    fn lists_and_maps_are_understood() {
        let map = filters(r#"{"name":{"web":true,"db":false}}"#).unwrap();
        assert_eq!(map, filters(r#"{"name":["web"]}"#).unwrap());
        assert!(map.fits("name", |name| "web-1".contains(name)) && !map.fits("name", |name| name == "x"));
        assert!(map.fits("label", |_| false), "nothing is asked for");
        for wrong in ["{", "[]", r#"{"fly":["x"]}"#, r#"{"name":"web"}"#, r#"{"name":{"a":1}}"#] {
            assert_eq!(filters(wrong).unwrap_err().status.as_u16(), 400, "{wrong}");
        }
    }

    #[test]
    fn names_are_parts_unless_they_have_ends() {
        let fits = |wanted: &str| {
            let text = serde_json::json!({ "name": [wanted] }).to_string();
            Filters::of(&Params::of(&[("filters", &text)]), &["name"]).unwrap().fits_name("web-1")
        };
        assert!(["web", "/web", "^web", "1$", "^/web-1$", "^web-1$"].into_iter().all(fits));
        assert!(!["^eb", "web$", "^web$", "x"].into_iter().any(fits));
    }

    #[test]
    fn what_was_made_before_all_times_fits() {
        let filters = |text: &str| Filters::of(&Params::of(&[("filters", text)]), &["until"]).unwrap();
        let until = |text: &str| filters(text).until().map(|fits| fits(5_000));
        assert_eq!((until("{}"), until(r#"{"until":["6"]}"#)), (Ok(true), Ok(true)));
        assert_eq!((until(r#"{"until":["5"]}"#), until(r#"{"until":["6","4"]}"#)), (Ok(false), Ok(false)));
        assert_eq!(until(r#"{"until":["24h"]}"#), Ok(true));
        assert_eq!(until(r#"{"until":["soon"]}"#).unwrap_err().status.as_u16(), 400);
    }

    #[test]
    fn all_labels_must_be_there() {
        let label =
            |key: &str| [("a", "1"), ("b", "")].iter().find(|(k, _)| *k == key).map(|(_, value)| *value);
        for (text, fits) in [
            (r#"{"label":["a","b="]}"#, true),
            (r#"{"label":["a=1"]}"#, true),
            (r#"{"label":["a=2"]}"#, false),
            (r#"{"label":["a","c"]}"#, false),
            (r#"{"label!":["c"]}"#, true),
            (r#"{"label!":["a"]}"#, false),
        ] {
            assert_eq!(filters(text).unwrap().fits_labels(label), fits, "{text}");
        }
    }
}
