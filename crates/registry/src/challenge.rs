//! What a registry wants to see before it answers: the header `WWW-Authenticate` (RFC 9110, section 11.6.1; RFC 6750).

/// One way to prove who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with every request (RFC 7617).
    Basic,
    /// A token from somewhere else (the token specification of the Docker registry).
    Bearer {
        /// Where tokens are given out: a URL.
        realm: String,
        /// The service they are for.
        service: Option<String>,
        /// What they are for, in words such as `repository:library/debian:pull`.
        scope: Option<String>,
    },
}

impl Challenge {
    /// The best of the challenges in one header: a token before a password. Nothing when it holds none that is understood.
    pub fn parse(header: &str) -> Option<Challenge> {
        let mut basic = None;
        for (scheme, parameters) in challenges(header) {
            let value = |name: &str| {
                let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.clone()).filter(|value| !value.is_empty())
            };
            if scheme.eq_ignore_ascii_case("bearer")
                && let Some(realm) = value("realm")
            {
                return Some(Challenge::Bearer { realm, service: value("service"), scope: value("scope") });
            }
            if scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
        basic
    }
}

type Parameters = Vec<(String, String)>;

/// The schemes of a header with their parameters. Both are separated by commas: a word before a `=` is a parameter, one
/// before a space begins the next challenge.
fn challenges(header: &str) -> Vec<(String, Parameters)> {
    let mut found: Vec<(String, Parameters)> = Vec::new();
    let mut rest = header;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        let end = rest.find(|c: char| !is_token(c)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        if word.is_empty() {
            return found;
        }
        let next = after.trim_start();
        match (next.strip_prefix('='), found.last_mut()) {
            (Some(value), Some((_, parameters))) => {
                let (value, left) = parameter_value(value.trim_start());
                parameters.push((word.to_string(), value));
                rest = left;
            }
            // A parameter of nothing.
            (Some(_), None) => return found,
            (None, _) => {
                found.push((word.to_string(), Vec::new()));
                rest = next;
            }
        }
    }
}

/// A value, quoted or not, and what follows it.
fn parameter_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_string(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// RFC 9110, section 5.6.2.
fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Option<Challenge> {
        let own = |text: Option<&str>| text.map(str::to_string);
        Some(Challenge::Bearer { realm: realm.to_string(), service: own(service), scope: own(scope) })
    }

    #[test]
    fn the_challenges_of_real_registries_are_understood() {
        for (header, want) in [
            (
                r#"Bearer realm="https://auth.example/token",service="reg.example",scope="repository:a/b:pull""#,
                bearer("https://auth.example/token", Some("reg.example"), Some("repository:a/b:pull")),
            ),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (r#"Basic realm="x", Bearer realm="https://t""#, bearer("https://t", None, None)),
            (r#"Bearer realm="https://t", Basic realm="x""#, bearer("https://t", None, None)),
            (
                r#"bearer Realm = "https://t?a=\"b\"" , SERVICE=plain , scope="x y", error="invalid_token""#,
                bearer("https://t?a=\"b\"", Some("plain"), Some("x y")),
            ),
            (r#"Negotiate, Basic realm="x, Bearer realm=y""#, Some(Challenge::Basic)),
        ] {
            assert_eq!(Challenge::parse(header), want, "{header}");
        }
    }

    #[test]
    fn nonsense_is_no_challenge() {
        for header in
            ["", " ,, ", "=", "Bearer", r#"Bearer realm="""#, "Digest a=b", "\u{e9}", "Bearer realm", "x=y"]
        {
            assert_eq!(Challenge::parse(header), None, "{header}");
        }
        // A value without an end is what there is of it.
        assert_eq!(Challenge::parse(r#"Bearer realm="https://t\"#), bearer("https://t", None, None));
    }
}
