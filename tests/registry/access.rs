//! Credentials, where they are kept, and certificates.

use std::fs;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::{Place, shown, skopeo};
use crate::support::docker_registry::{DockerRegistry, configure, has};
use crate::support::{Ended, finish, pty};

/// `strata login` with this password on standard input.
fn login(place: &Place, domain: &str, password: &str) -> Ended {
    let mut command = place.command(&["login", "--username", "me", "--password-stdin", domain]);
    let file = place.path("password");
    fs::write(&file, format!("{password}\n")).unwrap();
    command.stdin(fs::File::open(file).unwrap());
    finish(command)
}

#[test]
fn credentials_are_kept_where_docker_keeps_them() {
    let Some(registry) = DockerRegistry::with_password() else { return };
    let place = Place::new();
    place.import("app", &[("motd", b"hello\n")]);
    let domain = registry.domain.as_str();
    let name = format!("{domain}/app");
    place.good(&["image", "tag", "app", &name]);
    let refused = place.run(&["push", &name]);
    refused.expect_failure(125, &["wants credentials"]);
    assert!(refused.stderr.contains(&format!("next: strata login {domain}")), "{refused:?}");
    place.run(&["push", "--creds", "me:wrong", &name]).expect_failure(125, &["wants other credentials"]);
    place.good(&["push", "--creds", "me:secret", &name]);
    login(&place, domain, "wrong").expect_failure(125, &["wants other credentials"]);
    let file = place.path("docker/config.json");
    assert!(!file.exists(), "nothing is kept of what is wrong");
    // What else is in the file stays there.
    fs::create_dir(place.path("docker")).unwrap();
    fs::write(&file, r#"{"psFormat":"x","auths":{"other.example":{"auth":"YTpi"}}}"#).unwrap();
    let kept = login(&place, domain, "secret");
    assert_eq!(kept.code(), 0, "{kept:?}");
    assert!(!kept.stderr.contains("secret") && !kept.stdout.contains("secret"), "{kept:?}");
    let config: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!(
        (&config["psFormat"], &config["auths"]["other.example"]["auth"]),
        (&json!("x"), &json!("YTpi"))
    );
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    place.good(&["pull", &name]);
    // skopeo finds them there, and strata what skopeo keeps.
    let authfile = file.to_str().unwrap();
    let source = format!("docker://{name}");
    if skopeo(&["inspect", "--tls-verify=false", "--authfile", authfile, &source]).is_some() {
        place.good(&["logout", domain]);
        place.run(&["pull", &name]).expect_failure(125, &["wants credentials"]);
        let keep =
            ["login", "--tls-verify=false", "--authfile", authfile, "-u", "me", "-p", "secret", domain];
        skopeo(&keep);
        place.good(&["pull", &name]);
    }
    place.good(&["logout", domain]);
    assert!(place.run(&["logout", domain]).stderr.contains("were not kept"));
    fs::write(&file, "{").unwrap();
    place.run(&["pull", &name]).expect_failure(125, &["config.json"]);
}

#[test]
fn credentials_are_kept_by_a_program_where_the_file_names_one() {
    let Some(registry) = DockerRegistry::with_password() else { return };
    let place = Place::new();
    let domain = registry.domain.as_str();
    fs::create_dir(place.path("docker")).unwrap();
    fs::create_dir(place.path("bin")).unwrap();
    let kept = place.path("kept");
    // Speaks the protocol of Docker's helpers, with one file for everything.
    let helper = format!(
        "#!/bin/sh\ncase $1 in\nstore) cat > {kept} ;;\nget) cat > {kept}.asked; [ -e {kept} ] && cat {kept} && exit\n\
         echo 'credentials not found in native keychain'; exit 1 ;;\nerase) cat > /dev/null; rm {kept} ;;\nesac\n",
        kept = kept.display()
    );
    let program = place.path("bin/docker-credential-test");
    fs::write(&program, helper).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", place.path("bin").display(), std::env::var("PATH").unwrap());
    let config = place.path("docker/config.json");
    let with_path = |mut command: Command| {
        command.env("PATH", &path);
        finish(command)
    };
    let pull = |place: &Place| with_path(place.command(&["pull", &format!("{domain}/none")]));
    for text in [r#"{"credsStore":"test"}"#.to_owned(), format!(r#"{{"credHelpers":{{"{domain}":"test"}}}}"#)]
    {
        fs::write(&config, text).unwrap();
        pull(&place).expect_failure(125, &["wants credentials"]);
        assert_eq!(fs::read_to_string(place.path("kept.asked")).unwrap(), domain);
        let mut command = place.command(&["login", "-u", "me", "-p", "secret", domain]);
        command.env("PATH", &path);
        let ended = finish(command);
        assert!(ended.code() == 0 && ended.stderr.contains("kept in docker-credential-test"), "{ended:?}");
        assert!(!fs::read_to_string(&config).unwrap().contains("auth\""), "the file has no secret");
        // It is known now, and there is still no such image.
        pull(&place).expect_failure(125, &["no such image"]);
        assert_eq!(with_path(place.command(&["logout", domain])).code(), 0);
        pull(&place).expect_failure(125, &["wants credentials"]);
    }
    fs::write(&config, r#"{"credsStore":"not-there"}"#).unwrap();
    pull(&place).expect_failure(125, &["docker-credential-not-there", "No such file"]);
    fs::write(&config, r#"{"credsStore":"../test"}"#).unwrap();
    pull(&place).expect_failure(125, &["no name of a credential helper"]);
}

#[test]
fn a_password_that_is_typed_is_not_shown() {
    let Some(registry) = DockerRegistry::with_password() else { return };
    let place = Place::new();
    let mut terminal = pty::start(place.command(&["login", &registry.domain]), 24, 80);
    let before = terminal.mode();
    terminal.wait_for("Username: ");
    terminal.types("me\n");
    terminal.wait_for("Password: ");
    while terminal.mode() == before {
        std::thread::sleep(Duration::from_millis(10));
    }
    terminal.types("secret\n");
    assert!(terminal.finish().success(), "{}", terminal.screen());
    let screen = shown(&terminal, "are kept in");
    assert!(!screen.contains("secret"), "{screen}");
    assert_eq!(terminal.mode(), before);
    // Also when it is broken off.
    let mut terminal = pty::start(place.command(&["login", "-u", "me", &registry.domain]), 24, 80);
    terminal.wait_for("Password: ");
    while terminal.mode() == before {
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = rustix::process::Pid::from_child(&terminal.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(terminal.finish().code(), Some(130));
    assert_eq!(terminal.mode(), before);
}

#[test]
fn a_registry_elsewhere_needs_a_certificate_that_is_right() {
    let (registry, openssl) = (has("docker-registry", "docker-registry"), has("openssl", "openssl"));
    if !registry || !openssl || !has("ip", "iproute2") {
        return;
    }
    let place = Place::new();
    // An address of documentation (RFC 5737), in a network of its own where it is this very host's.
    for (file, port, more) in
        [("secure", 5443, ", tls: {certificate: CERT.pem, key: KEY.pem}"), ("plain", 5080, "")]
    {
        let folder = place.path(file);
        fs::create_dir(&folder).unwrap();
        let path = |name: &str| place.path(name).display().to_string();
        let more = more.replace("CERT.pem", &path("cert.pem")).replace("KEY.pem", &path("key.pem"));
        configure(&folder, &format!("192.0.2.1:{port}"), &more);
    }
    let script = format!(
        "set -e; cd {place}\n\
         ip link set lo up; ip addr add 192.0.2.1/32 dev lo\n\
         openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:192.0.2.1 \
             -addext basicConstraints=critical,CA:FALSE -keyout key.pem -out cert.pem 2>/dev/null\n\
         docker-registry serve secure/config.yml >/dev/null 2>&1 & secure=$!\n\
         docker-registry serve plain/config.yml >/dev/null 2>&1 & plain=$!\n\
         trap 'kill $secure $plain' EXIT\n\
         set +e\n\
         export DOCKER_CONFIG={place}/docker; strata='{strata} --root {place}/store'\n\
         for try in $(seq 100); do $strata pull --tls-verify=false 192.0.2.1:5443/x 2>&1 | grep -q 'no such image' && \
             $strata pull --tls-verify=false 192.0.2.1:5080/x 2>&1 | grep -q 'no such image' && echo up && break; sleep 0.1; done\n\
         echo == untrusted; $strata pull 192.0.2.1:5443/x 2>&1\n\
         echo == trusted; SSL_CERT_FILE=$PWD/cert.pem $strata pull 192.0.2.1:5443/x 2>&1\n\
         echo == plain; $strata pull 192.0.2.1:5080/x 2>&1\n",
        place = place.0.path().display(),
        strata = env!("CARGO_BIN_EXE_strata"),
    );
    let output = Command::new("unshare").args(["--net", "sh", "-c", &script]).output();
    let output =
        output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    if !output.starts_with("up") {
        assert!(!rustix::process::geteuid().is_root() || output.is_empty(), "{output}");
        println!("skipped: no network of its own here");
        return;
    }
    let part = |mark: &str| output.split("== ").find_map(|part| part.strip_prefix(mark)).unwrap().to_owned();
    let untrusted = part("untrusted");
    assert!(untrusted.contains("certificate") && untrusted.contains("--tls-verify=false"), "{untrusted}");
    assert!(part("trusted").contains("no such image"), "{output}");
    // No way back to plain HTTP where nobody allowed it.
    let plain = part("plain");
    assert!(plain.contains("secure connection") && !plain.contains("no such image"), "{plain}");
}
