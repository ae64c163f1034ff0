//! Who asks, and where an answer sends us.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry::{Credentials, Options};

use super::fake_registry::{Contents, FakeRegistry, Reply, Request};
use super::{Temp, layer_error, noise, options, with_layer};

fn contents() -> Contents {
    Contents::image(&[noise(1000, 1)], |_| {})
}

fn as_user() -> Options {
    Options { credentials: Some(Credentials::password("me", "secret").unwrap()), ..options() }
}

/// `Basic` of me:secret.
const BASIC: &str = "Basic bWU6c2VjcmV0";

fn unauthorized(challenge: &str) -> Reply {
    Reply::status(401).with("WWW-Authenticate", challenge)
}

#[test]
fn redirects_that_lead_nowhere_are_refused() {
    let message = layer_error(|request, _| Some(Reply::redirect(request.path.clone())));
    assert!(message.contains("more than 10 redirects"), "{message}");
    for (location, want) in [
        ("ftp://127.0.0.1/x", "redirects from http to \"ftp\""),
        ("file:///etc/passwd", "location"),
        ("", "location"),
        ("http://user:password@127.0.0.1/", "location"),
        ("gopher:x", "location"),
    ] {
        let message = layer_error(move |_, _| Some(Reply::redirect(location)));
        assert!(message.contains(want), "{message}");
    }
    let message = layer_error(|_, _| Some(Reply::status(302)));
    assert!(message.contains("without the Location"), "{message}");
}

#[test]
fn credentials_stay_with_the_registry() {
    let layer = noise(1000, 1);
    let (path, bytes) = (image::Digest::of(&layer).hex(), layer.clone());
    let elsewhere = FakeRegistry::start(Contents::default(), move |_| Some(Reply::ok(bytes.clone())));
    let target = format!("http://{}/cdn?signature=%2Fx", elsewhere.domain);
    let registry = FakeRegistry::start(contents(), move |request| {
        if request.header("authorization") != BASIC {
            return Some(unauthorized("Basic realm=\"x\""));
        }
        request.path.ends_with(&path).then(|| Reply::redirect(target.clone()))
    });
    let temp = Temp::new();
    temp.pull_with(&registry, "app", &as_user()).unwrap();
    assert_eq!(temp.blob(&layer), Some(layer));
    let asked = elsewhere.asked();
    assert_eq!(asked[0].path, "/cdn?signature=%2Fx");
    assert!(asked.iter().all(|request| request.header("authorization").is_empty()), "{asked:?}");
    // The user never is, without being asked.
    assert!(registry.asked()[0].header("authorization").is_empty());
}

/// A host that wants credentials, and a place for tokens that would take them. Neither ever hears one.
fn greedy() -> (FakeRegistry, FakeRegistry) {
    let tokens = FakeRegistry::start(Contents::default(), |_| Some(Reply::ok(r#"{"token":"t"}"#)));
    let challenge = format!("Bearer realm=\"http://{}/token\"", tokens.domain);
    let host = FakeRegistry::start(Contents::default(), move |_| Some(unauthorized(&challenge)));
    (host, tokens)
}

#[test]
fn a_host_that_a_redirect_leads_to_cannot_ask_for_credentials() {
    for moved in ["/v2/", "/manifests/", "/blobs/"] {
        let (host, tokens) = greedy();
        let target = format!("http://{}/x", host.domain);
        let registry = FakeRegistry::start(contents(), move |request| {
            if request.path.contains(moved) && (moved != "/v2/" || request.path == moved) {
                return Some(Reply::redirect(target.clone()));
            }
            (request.header("authorization") != BASIC).then(|| unauthorized("Basic realm=\"x\""))
        });
        let temp = Temp::new();
        let message = temp.pull_with(&registry, "app", &as_user()).unwrap_err();
        assert!(message.contains(&host.domain) && message.lines().count() == 1, "{message}");
        temp.assert_untouched();
        assert!(host.asked().iter().all(|request| request.header("authorization").is_empty()));
        assert_eq!(tokens.asked().len(), 0, "{moved}");
    }
}

#[test]
fn tokens_and_uploads_leave_no_credentials_elsewhere() {
    // The place for tokens leads elsewhere.
    let (host, _tokens) = greedy();
    let target = format!("http://{}/token", host.domain);
    let (registry, tokens) = with_tokens(move |_| Reply::redirect(target.clone()), |_| false);
    let temp = Temp::new();
    assert!(temp.pull_with(&registry, "app", &as_user()).is_err());
    assert_eq!(tokens.asked()[0].header("authorization"), BASIC);
    let heard = host.asked();
    assert!(!heard.is_empty() && heard.iter().all(|request| request.header("authorization").is_empty()));
    // An upload goes on elsewhere.
    let elsewhere = FakeRegistry::start(Contents::default(), |_| Some(Reply::status(201)));
    let location = format!("http://{}/upload?state=x", elsewhere.domain);
    let registry = FakeRegistry::start(contents(), move |request| {
        if request.header("authorization") != BASIC {
            return Some(unauthorized("Basic realm=\"x\""));
        }
        match request.method.as_str() {
            "HEAD" => Some(Reply::status(404)),
            "POST" => Some(Reply::status(202).with("Location", location.clone())),
            "PUT" => Some(Reply::status(201)),
            _ => None,
        }
    });
    temp.pull_with(&registry, "app", &as_user()).unwrap();
    let name = format!("{}/app", registry.domain).parse().unwrap();
    registry::push(&temp.store, &name, &as_user(), &image::NoProgress).unwrap();
    let heard = elsewhere.asked();
    assert_eq!(heard.iter().filter(|request| request.method == "PUT").count(), 2);
    assert!(heard.iter().all(|request| request.header("authorization").is_empty()));
}

#[test]
fn missing_and_wrong_credentials_are_told_apart() {
    let script = |request: &Request| {
        (request.header("authorization") != BASIC).then(|| unauthorized("Basic realm=\"x\""))
    };
    let registry = FakeRegistry::start(contents(), script);
    let temp = Temp::new();
    let message = temp.pull(&registry).unwrap_err();
    assert!(message.contains("wants credentials"), "{message}");
    let wrong = Options { credentials: Some(Credentials::password("me", "x").unwrap()), ..options() };
    let message = temp.pull_with(&registry, "app", &wrong).unwrap_err();
    assert!(message.contains("wants other credentials"), "{message}");
    registry::login(&registry.domain, &as_user()).unwrap();
    assert!(registry::login(&registry.domain, &wrong).is_err());
    temp.pull_with(&registry, "app", &as_user()).unwrap();
    // A registry with a challenge nobody knows.
    let registry = FakeRegistry::start(contents(), |_| Some(unauthorized("Negotiate")));
    assert!(temp.pull(&registry).unwrap_err().contains("of a kind that is not known"));
}

/// A registry and a place for tokens: `grant` makes the token's document from the request for it.
fn with_tokens(
    grant: impl Fn(&Request) -> Reply + Send + Sync + 'static,
    accepts: impl Fn(&Request) -> bool + Send + Sync + 'static,
) -> (FakeRegistry, FakeRegistry) {
    let tokens = FakeRegistry::start(Contents::default(), move |request| Some(grant(request)));
    let realm = format!("http://{}/token?x=1", tokens.domain);
    let registry = FakeRegistry::start(contents(), move |request| {
        let challenge = format!("Bearer realm=\"{realm}\",service=\"the registry\"");
        (!accepts(request)).then(|| unauthorized(&challenge))
    });
    (registry, tokens)
}

#[test]
fn a_token_is_fetched_once_and_anew_when_it_is_refused() {
    let given = Arc::new(AtomicUsize::new(0));
    let count = given.clone();
    let (registry, tokens) = with_tokens(
        move |_| Reply::ok(format!("{{\"token\":\"t{}\"}}", count.fetch_add(1, Ordering::Relaxed))),
        // The first one is good for the manifest alone.
        |request| match request.header("authorization") {
            "Bearer t0" => request.path.contains("/manifests/"),
            "Bearer t1" => true,
            _ => false,
        },
    );
    let temp = Temp::new();
    temp.pull_with(&registry, "team/app", &as_user()).unwrap();
    assert_eq!(given.load(Ordering::Relaxed), 2);
    let asked = tokens.asked();
    assert_eq!(
        asked[0].path,
        "/token?x=1&service=the%20registry&scope=repository%3Ateam%2Fapp%3Apull&account=me"
    );
    assert_eq!(asked[0].header("authorization"), BASIC);
    // The password goes to the place of the tokens, and nowhere else.
    assert!(registry.asked().iter().all(|request| request.header("authorization") != BASIC));
}

#[test]
fn an_identity_token_gets_tokens_by_a_form() {
    let (registry, tokens) = with_tokens(
        |_| Reply::ok(r#"{"access_token":"t","expires_in":300}"#),
        |request| request.header("authorization") == "Bearer t",
    );
    let credentials = Some(Credentials::IdentityToken("refresh/me".to_string()));
    Temp::new().pull_with(&registry, "app", &Options { credentials, ..options() }).unwrap();
    let asked = &tokens.asked()[0];
    let body = String::from_utf8(asked.body.clone()).unwrap();
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token?x=1"));
    assert!(
        body.contains("grant_type=refresh_token") && body.contains("refresh_token=refresh%2Fme"),
        "{body}"
    );
}

#[test]
fn tokens_that_are_none_are_refused() {
    let huge = format!(r#"{{"token":"{}"}}"#, "x".repeat(100_000));
    let endless = format!(r#"{{"token":"{}"}}"#, "x".repeat(2 << 20));
    for (document, want) in [
        ("{}", "a document without a token"),
        ("[]", "parse its token"),
        (&huge, "a token of 100000 bytes"),
        (&endless, "a document of more than 1048576 bytes"),
        (r#"{"token":"a\r\nX-Evil: 1"}"#, "characters that no token has"),
    ] {
        let document = document.to_string();
        let (registry, _tokens) = with_tokens(move |_| Reply::ok(document.clone()), |_| false);
        let temp = Temp::new();
        let message = temp.pull(&registry).unwrap_err();
        assert!(message.contains(want), "{message}");
        temp.assert_untouched();
    }
    // A place that gives a token which is never good: asked twice, not for ever.
    let (registry, tokens) = with_tokens(|_| Reply::ok(r#"{"token":"t"}"#), |_| false);
    assert!(Temp::new().pull(&registry).unwrap_err().contains("wants credentials"));
    assert_eq!(tokens.asked().len(), 2);
    let (registry, _tokens) = with_tokens(|_| Reply::status(403), |_| false);
    assert!(Temp::new().pull(&registry).unwrap_err().contains("wants credentials: Forbidden"));
    let (registry, _tokens) = with_tokens(|_| Reply::redirect("ftp://x/"), |_| false);
    assert!(Temp::new().pull(&registry).unwrap_err().contains("breaks the protocol"));
}

#[test]
fn what_is_no_registry_is_called_so() {
    let temp = Temp::new();
    for (reply, want) in [(404, "it is no registry"), (200, "no such image"), (500, "answers 500")] {
        let registry =
            FakeRegistry::start(Contents::default(), move |_| (reply != 200).then(|| Reply::status(reply)));
        let message = temp.pull(&registry).unwrap_err();
        assert!(message.contains(want), "{message}");
    }
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let domain = listener.local_addr().unwrap();
    drop(listener);
    let name = format!("{domain}/app").parse().unwrap();
    let refused = registry::pull(&temp.store, &name, &options(), &image::NoProgress).unwrap_err();
    assert!(super::chain(&refused).contains("Connection refused"), "{refused:?}");
    temp.assert_untouched();
}

#[test]
fn the_store_is_the_only_thing_that_is_written() {
    // A name cannot lead out of the store, and neither can a digest: both are parsed before they become paths.
    let registry = with_layer(&noise(10, 1), |_, _| None);
    for name in ["../../etc", "a/../b", "app@sha256:../../x"] {
        assert!(format!("{}/{name}", registry.domain).parse::<image::Reference>().is_err(), "{name}");
    }
    let temp = Temp::new();
    temp.pull(&registry).unwrap();
    assert_eq!(std::fs::read_dir(temp.dir.path()).unwrap().count(), 1);
}
