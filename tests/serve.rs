//! What `strata serve` has beside Docker's API: ports with certificates or a token, metrics, and Strata's own endpoints.

use std::collections::BTreeMap;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::docker_registry::has;
use crate::support::finish;
use crate::support::server::{Answer, Server, ask};

/// A token opens the loopback; gives the port and the cookie.
fn enter(server: &Server) -> (String, String) {
    let url = server.address("http").to_owned();
    let (place, path) = url.trim_start_matches("http://").split_once('/').unwrap();
    let answer = at(place, "GET", &format!("/{path}"), "");
    assert_eq!(answer.status, 303, "{}", answer.head);
    let cookie = answer.head.lines().find_map(|line| line.strip_prefix("set-cookie: ")).unwrap();
    assert!(cookie.contains("httponly") && cookie.contains("samesite=strict"), "{cookie}");
    (place.to_owned(), cookie.split(';').next().unwrap().to_owned())
}

fn at(place: &str, method: &str, path: &str, head: &str) -> Answer {
    let head = if head.to_lowercase().contains("host:") {
        head.to_owned()
    } else {
        format!("Host: {place}\r\n{head}")
    };
    ask(TcpStream::connect(place).unwrap(), method, path, &head, "")
}

#[test]
fn the_loopback_is_open_to_who_has_the_token_and_to_no_other_site() {
    let Some(server) = Server::start(&["--console", "--listen", "http://127.0.0.1:0"], 2) else { return };
    let (place, cookie) = enter(&server);
    let cookie = format!("Cookie: {cookie}\r\n");
    for path in ["/_ping", "/info", "/console/", "/metrics", "/containers/json", "/strata/v1/check"] {
        assert_eq!(at(&place, "GET", path, "").status, 401, "{path}");
    }
    assert_eq!(at(&place, "GET", "/console/?token=0000", "").status, 401);
    assert_eq!(at(&place, "GET", "/_ping", &cookie).status, 200);
    // A name of somebody else that has the address of this host.
    assert_eq!(at(&place, "GET", "/_ping", &format!("Host: evil.example\r\n{cookie}")).status, 421);
    let evil = format!("Origin: http://evil.example\r\n{cookie}");
    assert_eq!(at(&place, "POST", "/containers/prune", &evil).status, 403);
    assert_eq!(at(&place, "GET", "/info", &format!("Sec-Fetch-Site: cross-site\r\n{cookie}")).status, 403);
    let socket = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n";
    let path = "/strata/v1/workloads/x/terminal";
    assert_eq!(at(&place, "GET", path, &format!("{socket}{evil}")).status, 403);
    let own = format!("Origin: http://{place}\r\n{cookie}");
    assert_eq!(at(&place, "POST", "/containers/prune", &own).status, 200);

    let page = at(&place, "GET", "/console/", &cookie);
    assert!(
        page.status == 200 && page.head.contains("content-security-policy: default-src 'none'"),
        "{}",
        page.head
    );
    for file in ["console.js", "console.css", "icon.svg", "licenses.txt"] {
        assert_eq!(at(&place, "GET", &format!("/console/{file}"), &cookie).status, 200, "{file}");
    }
    assert_eq!(at(&place, "GET", "/console/../Cargo.toml", &cookie).status, 404);
}

#[test]
fn the_console_is_off_unless_asked_for_and_no_port_is_open_to_everybody() {
    let Some(server) = Server::start(&[], 1) else { return };
    let stream = UnixStream::connect(server.address("unix").trim_start_matches("unix://")).unwrap();
    let answer = ask(stream, "GET", "/console/", "Host: x\r\n", "");
    assert!(answer.status == 404 && answer.body.contains("--console"), "{}", answer.body);
    for listen in ["tcp://0.0.0.0:0", "tcp://127.0.0.1:0"] {
        server.place.try_to(&["serve", "--listen", listen]).expect_failure(2, &["serve: "]);
    }
    let missing =
        ["serve", "--listen", "tcp://127.0.0.1:0", "--tls-ca", "no", "--tls-cert", "no", "--tls-key", "no"];
    server.place.try_to(&missing).expect_failure(125, &["serve: ", "no: "]);
}

#[test]
fn who_fills_a_port_and_says_nothing_keeps_nobody_from_the_socket() {
    let Some(server) = Server::start(&["--console", "--listen", "http://127.0.0.1:0"], 2) else { return };
    let (place, cookie) = enter(&server);
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(&place).unwrap()).collect();
    let socket = server.address("unix").trim_start_matches("unix://");
    for _ in 0..10 {
        let answer = ask(UnixStream::connect(socket).unwrap(), "GET", "/_ping", "Host: x\r\n", "");
        assert_eq!((answer.status, answer.body.as_str()), (200, "OK"));
    }
    drop(silent);
    assert_eq!(at(&place, "GET", "/_ping", &format!("Cookie: {cookie}\r\n")).status, 200);
}

/// An authority, and certificates of a server and of two clients, one of which is of another authority.
fn certificates(folder: &Path) {
    let script = r#"
        set -e
        authority() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=$1" -keyout "$1-key.pem" -out "$1.pem" 2>/dev/null; }
        certificate() {
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$2" -keyout "$2-key.pem" -out "$2.csr" 2>/dev/null
            echo "subjectAltName=IP:127.0.0.1" > "$2.ext"
            openssl x509 -req -in "$2.csr" -CA "$1.pem" -CAkey "$1-key.pem" -CAcreateserial -days 2 -extfile "$2.ext" -out "$2.pem" 2>/dev/null
        }
        authority ca; authority other
        certificate ca server; certificate ca client; certificate other stranger
    "#;
    let made = Command::new("sh").args(["-c", script]).current_dir(folder).status().unwrap();
    assert!(made.success());
}

#[test]
fn docker_with_a_certificate_is_let_in_and_nobody_without() {
    if !has("docker", "docker-cli") || !has("openssl", "openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server-key.pem"));
    let flags = ["--listen", "tcp://127.0.0.1:0", "--tls-ca", &ca, "--tls-cert", &cert, "--tls-key", &key];
    let Some(server) = Server::start(&flags, 2) else { return };
    let docker = |identity: Option<&str>, arguments: &[&str]| {
        let mut command = Command::new("docker");
        command.env("DOCKER_CONFIG", folder.path().join("config")).args(["-H", server.address("tcp")]);
        command.args(["--tlsverify", "--tlscacert", &ca]);
        if let Some(name) = identity {
            command.args([
                "--tlscert",
                &file(&format!("{name}.pem")),
                "--tlskey",
                &file(&format!("{name}-key.pem")),
            ]);
        }
        finish({
            command.args(arguments);
            command
        })
    };
    let ran = docker(Some("client"), &["run", "--rm", "debian", "echo", "over TLS"]);
    assert_eq!((ran.code(), ran.stdout.as_str()), (0, "over TLS\n"), "{ran:?}");
    for identity in [None, Some("stranger")] {
        let refused = docker(identity, &["ps"]);
        assert!(refused.code() != 0 && refused.stdout.is_empty(), "{identity:?}: {refused:?}");
    }
    // Without TLS at all there is no answer to read.
    let place = server.address("tcp").trim_start_matches("tcp://");
    let mut stream = TcpStream::connect(place).unwrap();
    let _ = std::io::Write::write_all(&mut stream, b"GET /_ping HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
}

/// A family of metrics.
#[derive(Default, Debug)]
struct Family {
    kind: String,
    help: String,
    samples: Vec<(BTreeMap<String, String>, f64)>,
}

/// Reads the text form as its specification has it: a family's lines stand together, its head before its samples.
fn parse(text: &str) -> BTreeMap<String, Family> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let (word, rest) = rest.split_once(' ').unwrap();
            let (name, rest) = rest.split_once(' ').unwrap();
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "{line}");
            match word {
                "HELP" => family.help = rest.to_owned(),
                "TYPE" => family.kind = rest.to_owned(),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        assert!(
            name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'),
            "{line}"
        );
        let labels = labels_of(labels.strip_suffix('}').unwrap_or(labels));
        let family = families.get_mut(name).unwrap_or_else(|| panic!("no head: {line}"));
        family.samples.push((labels, value.parse().unwrap()));
    }
    for (name, family) in &families {
        assert!(matches!(family.kind.as_str(), "counter" | "gauge") && !family.help.is_empty(), "{name}");
        assert_eq!(family.kind == "counter", name.ends_with("_total"), "{name}");
        assert!(!family.samples.is_empty(), "{name}");
    }
    families
}

fn labels_of(mut text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    while !text.is_empty() {
        let (key, rest) = text.split_once("=\"").unwrap();
        let (mut value, mut chars) = (String::new(), rest.chars());
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\\' => value.push(match chars.next().unwrap() {
                    'n' => '\n',
                    other => other,
                }),
                other => value.push(other),
            }
        }
        assert!(labels.insert(key.to_owned(), value).is_none());
        text = chars.as_str().trim_start_matches(',');
    }
    labels
}

/// Workloads that work and send, named as their isolation, and one that is over.
fn busy(server: &Server) {
    for isolation in ["container", "vm"] {
        // It sends something too, to nobody in particular.
        let script = "while :; do :; done & while :; do echo > /dev/udp/192.0.2.1/9; sleep 0.1; done";
        server.place.strata(&[
            "run",
            "-d",
            "--name",
            isolation,
            "--isolation",
            isolation,
            "--network",
            "user",
            "debian",
            "--",
            "bash",
            "-c",
            script,
        ]);
    }
    server.place.try_to(&[
        "run",
        "--isolation",
        "container",
        "--name",
        "over",
        "-d",
        "debian",
        "--",
        "sh",
        "-c",
        "exit 3",
    ]);
}

#[test]
fn metrics_tell_what_runs_and_what_it_takes() {
    let Some(server) = Server::start(&[], 1) else { return };
    let socket = server.address("unix").trim_start_matches("unix://").to_owned();
    busy(&server);
    let mut families = BTreeMap::new();
    let value = |families: &BTreeMap<String, Family>, name: &str, workload: &str, more: &[(&str, &str)]| {
        let family = families.get(name)?;
        let fits = |labels: &BTreeMap<String, String>| {
            labels.get("name").is_some_and(|own| own == workload)
                && more.iter().all(|(key, value)| labels.get(*key).is_some_and(|own| own == value))
        };
        family.samples.iter().find(|(labels, _)| fits(labels)).map(|(_, value)| *value)
    };
    server.place.wait_for("all metrics", || {
        let answer = ask(UnixStream::connect(&socket).unwrap(), "GET", "/metrics", "Host: x\r\n", "");
        assert!(answer.status == 200 && answer.head.contains("text/plain; version=0.0.4"), "{}", answer.head);
        families = parse(&answer.body);
        let counts = |family, name| value(&families, family, name, &[]).is_some_and(|value| value > 0.0);
        let works = |name| {
            counts("strata_workload_cpu_seconds_total", name)
                && counts("strata_workload_network_transmit_bytes_total", name)
        };
        value(&families, "strata_workload_exit_code", "over", &[]) == Some(3.0)
            && works("container")
            && works("vm")
    });
    for name in ["container", "vm"] {
        let of = |family: &str, more: &[(&str, &str)]| value(&families, family, name, more);
        assert_eq!(of("strata_workload_info", &[("isolation", name)]), Some(1.0));
        assert_eq!(of("strata_workload_state", &[("state", "running")]), Some(1.0));
        assert_eq!(of("strata_workload_state", &[("state", "exited")]), Some(0.0));
        assert_eq!(of("strata_workload_restarts_total", &[]), Some(0.0));
        assert!(of("strata_workload_memory_bytes", &[]).unwrap() > 0.0);
        assert!(of("strata_workload_block_read_bytes_total", &[]).is_some(), "{name}");
    }
    assert!(value(&families, "strata_workload_network_receive_bytes_total", "vm", &[]).is_some());
    for name in
        ["process_resident_memory_bytes", "strata_store_images", "strata_store_filesystem_avail_bytes"]
    {
        assert!(families[name].samples[0].1 > 0.0, "{name}");
    }
}

fn v1(path: &str) -> String {
    format!("/strata/v1/{path}")
}

/// What makes no sense, with a machine `box`, a container `jar` and a snapshot `base`.
fn refusals(ask: &dyn Fn(&str, &str, Value) -> (u16, Value)) {
    for (method, path, body, expected) in [
        ("POST", "workloads/jar/fork", json!({}), 501),
        ("POST", "workloads/none/fork", json!({}), 404),
        ("POST", "workloads/box/fork", json!({ "count": 0 }), 400),
        ("POST", "workloads/box/fork", json!({ "cuont": 1 }), 400),
        ("POST", "snapshots", json!({ "workload": "jar", "name": "x" }), 501),
        ("POST", "snapshots", json!({ "workload": "box", "name": "../x" }), 400),
        ("POST", "snapshots/base/restore", json!({ "name": "box" }), 409),
        ("POST", "snapshots/none/restore", json!({}), 404),
        ("POST", "snapshots/..%2fworkloads/restore", json!({}), 400),
        ("DELETE", "snapshots/none", Value::Null, 404),
        ("DELETE", "templates/none", Value::Null, 404),
    ] {
        let (status, answer) = ask(method, &v1(path), body);
        assert_eq!(status, expected, "{method} {path}: {answer}");
        assert!(answer["message"].as_str().is_some_and(|text| !text.is_empty()), "{path}: {answer}");
    }
}

#[test]
fn machines_are_saved_restored_and_copied_through_the_api() {
    let Some(server) = Server::start(&[], 1) else { return };
    let socket = server.address("unix").trim_start_matches("unix://").to_owned();
    let ask = |method: &str, path: &str, body: Value| {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = ask(UnixStream::connect(&socket).unwrap(), method, path, "Host: x\r\n", &body);
        let value = serde_json::from_str::<Value>(&answer.body).unwrap_or(Value::Null);
        (answer.status, value)
    };
    server.place.start(&["--name", "box"], "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done");
    server.place.strata(&[
        "run",
        "-d",
        "--isolation",
        "container",
        "--name",
        "jar",
        "debian",
        "--",
        "sleep",
        "1000",
    ]);

    let (status, copies) = ask("POST", &v1("workloads/box/fork"), json!({ "count": 2 }));
    assert_eq!(
        (status, &copies[0]["name"], &copies[1]["name"]),
        (201, &json!("box-1"), &json!("box-2")),
        "{copies}"
    );
    let (status, saved) = ask("POST", &v1("snapshots"), json!({ "workload": "box", "name": "base" }));
    assert_eq!((status, &saved["name"]), (201, &json!("base")), "{saved}");
    let (_, list) = ask("GET", &v1("snapshots"), Value::Null);
    assert!(
        list[0]["name"] == "base" && list[0]["broken"].is_null() && list[0]["size_bytes"].as_u64() > Some(0),
        "{list}"
    );
    assert!(server.place.strata(&["snapshots", "ls"]).contains("base"), "one list, two faces");
    let (status, made) = ask("POST", &v1("snapshots/base/restore"), json!({ "name": "again" }));
    assert_eq!((status, &made["name"]), (201, &json!("again")), "{made}");
    server.place.wait_for("ticks", || server.place.strata(&["logs", "again"]).contains("tick"));
    // It goes on from the snapshot whenever it is started.
    server.place.strata(&["kill", "again"]);
    server.place.strata(&["wait", "again"]);
    server.place.strata(&["start", "again"]);
    assert_eq!(server.place.state("again")["status"], "running");

    let (_, rows) = ask("GET", &v1("workloads"), Value::Null);
    let row = |name: &str| rows.as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone();
    assert!(
        row("box-1")["memory_bytes"].as_u64() > Some(0) && row("jar")["isolation"] == "container",
        "{rows}"
    );
    let (_, check) = ask("GET", &v1("check"), Value::Null);
    assert!(check["findings"].as_array().is_some_and(|found| !found.is_empty()), "{check}");
    let (_, templates) = ask("GET", &v1("templates"), Value::Null);
    let id = templates[0]["id"].as_str().unwrap();
    assert_eq!(ask("DELETE", &v1(&format!("templates/{id}")), Value::Null).0, 204);

    refusals(&ask);
    server.place.strata(&["stop", "-t", "0", "box"]);
    assert_eq!(ask("POST", &v1("workloads/box/fork"), json!({})).0, 409);
    assert_eq!(ask("DELETE", &v1("snapshots/base"), Value::Null).0, 204);
    assert_eq!(ask("GET", &v1("snapshots"), Value::Null).1, json!([]));
}
