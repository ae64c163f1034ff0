//! JSON documents from strangers: counted before they are read.
//!
//! A document of a few mebibytes may hold millions of values, each of which costs far more in memory than in text. So its
//! values are counted first, which keeps none of them.

use serde::de::{Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, Error as _};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// Values in one document: a descriptor has about five, the largest indexes of real images some thousands. Attack: a
/// document of millions of empty objects, which become gigabytes.
pub const MAX_VALUES: usize = 50_000;

/// Reads a manifest, an index, a config that somebody else has written.
///
/// # Errors
/// It does not parse, has another shape, or more than [`MAX_VALUES`] values.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    let mut left = MAX_VALUES;
    Counter(&mut left).deserialize(&mut reader)?;
    serde_json::from_slice(bytes).or_else(|error| {
        let mut value: Value = serde_json::from_slice(bytes)?;
        fill_lists(&mut value);
        // What is wrong otherwise is said with its place.
        serde_json::from_value(value).map_err(|_| error)
    })
}

/// Lists that writers in Go call `null`, or leave out, when nothing is in them: those of an image without a layer.
const LISTS: [&str; 4] = ["layers", "manifests", "history", "diff_ids"];

fn fill_lists(value: &mut Value) {
    for (key, value) in value.as_object_mut().into_iter().flatten() {
        if value.is_null() && LISTS.contains(&key.as_str()) {
            *value = Value::Array(Vec::new());
        } else if let (true, Some(rootfs)) = (key == "rootfs", value.as_object_mut()) {
            rootfs.entry("diff_ids").or_insert(Value::Null);
            fill_lists(value);
        }
    }
}

/// Counts down one value and all in it.
struct Counter<'c>(&'c mut usize);

impl<'d> DeserializeSeed<'d> for Counter<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'d>>(self, deserializer: D) -> Result<(), D::Error> {
        *self.0 = self
            .0
            .checked_sub(1)
            .ok_or_else(|| D::Error::custom(format!("more than {MAX_VALUES} values in one document")))?;
        deserializer.deserialize_any(self)
    }
}

impl<'d> Visitor<'d> for Counter<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'d>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Counter(self.0))?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'d>>(self, mut map: A) -> Result<(), A::Error> {
        while map.next_key::<Key>()?.is_some() {
            map.next_value_seed(Counter(self.0))?;
        }
        Ok(())
    }
}

/// The key of an object, which nobody keeps.
struct Key;

impl<'d> Deserialize<'d> for Key {
    fn deserialize<D: Deserializer<'d>>(deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(Counter(&mut 0)).map(|()| Key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_nothing_may_be_null() {
        for rootfs in [r#"{"type":"layers","diff_ids":null}"#, r#"{"type":"layers"}"#] {
            let text = format!(r#"{{"architecture":"amd64","os":"linux","rootfs":{rootfs},"history":null}}"#);
            let config: oci_spec::image::ImageConfiguration = parse(text.as_bytes()).unwrap();
            assert!(config.rootfs().diff_ids().is_empty());
        }
        let wrong = parse::<oci_spec::image::ImageConfiguration>(br#"{"architecture":null}"#).unwrap_err();
        assert!(wrong.to_string().contains("line 1"), "{wrong}");
    }

    #[test]
    fn values_are_counted_wherever_they_are() {
        let list = |count: usize| format!("[{}0]", "0,".repeat(count - 2));
        // The list itself is one.
        assert_eq!(parse::<Vec<u8>>(list(MAX_VALUES).as_bytes()).unwrap().len(), MAX_VALUES - 1);
        let map = format!("{{{}\"z\":0}}", "\"a\":{},".repeat(MAX_VALUES));
        let nested = format!("[{}0]", "{\"a\":[\"b\",true,null,-1,1.5]},".repeat(MAX_VALUES / 7 + 1));
        for text in [list(MAX_VALUES + 1), map, nested] {
            let error = parse::<serde_json::Value>(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("more than 50000 values"), "{error}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused_as_ever() {
        for text in ["", "[", "{\"a\"}", "nul", "[1,]", "[] []", &"[".repeat(1000)] {
            assert!(parse::<serde_json::Value>(text.as_bytes()).is_err(), "{text}");
        }
        assert_eq!(parse::<Vec<String>>(b"[\"a\\u0041\"]").unwrap(), ["aA"]);
    }
}
