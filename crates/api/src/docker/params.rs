//! The query of a request.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::error::{ApiError, Result};

/// Names and values, as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// The first value of this name that says anything.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(other, value)| other == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    /// All values of this name.
    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// Whether this is asked for: docker's rule, by which any other word is a yes.
    pub(super) fn flag(&self, name: &str) -> bool {
        let no =
            |value: &str| matches!(value.to_ascii_lowercase().as_str(), "" | "0" | "no" | "false" | "none");
        self.0.iter().find(|(other, _)| other == name).is_some_and(|(_, value)| !no(value.trim()))
    }

    /// A number.
    ///
    /// # Errors
    /// It is none.
    pub(super) fn number<T: std::str::FromStr>(&self, name: &str) -> Result<Option<T>> {
        let wrong = |value: &str| ApiError::bad(format!("{name}: {value:?} is no number that makes sense"));
        self.get(name).map(|value| value.parse().map_err(|_| wrong(value))).transpose()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> std::result::Result<Params, ApiError> {
        let query = axum::extract::Query::<Vec<(String, String)>>::from_request_parts(parts, state).await;
        query.map(|query| Params(query.0)).map_err(|error| ApiError::bad(error.to_string()))
    }
}

#[cfg(test)]
impl Params {
    pub(super) fn of(pairs: &[(&str, &str)]) -> Params {
        Params(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_read_as_docker_does() {
        let params =
            Params::of(&[("a", "1"), ("b", "false"), ("c", ""), ("t", "x"), ("t", "y"), ("n", "-3")]);
        assert!(params.flag("a") && params.flag("t"));
        assert!(!params.flag("b") && !params.flag("c") && !params.flag("missing"));
        assert_eq!(params.all("t").collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!((params.get("c"), params.number::<i32>("n")), (None, Ok(Some(-3))));
        assert!(params.number::<u32>("n").is_err());
    }
}
