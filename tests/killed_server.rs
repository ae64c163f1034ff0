//! `kill -9` of a server that is in the middle of something for a client: what it did is over or goes on as if it had not been
//! asked by one, nothing that it began stays, and the next server does what the client asks for again.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::docker::Server;
use crate::registry::streams::held_back;
use crate::soak_api::traces::processes_of;

/// Sends a request, and reads its answer until `mark` is there.
fn begin(server: &Server, head: &str, body: &[u8], mark: &str) -> UnixStream {
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    let length = body.len();
    stream
        .write_all(format!("{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n").as_bytes())
        .unwrap();
    stream.write_all(b"\r\n").unwrap();
    stream.write_all(body).unwrap();
    let mut said = Vec::new();
    let mut some = [0; 4096];
    while !String::from_utf8_lossy(&said).contains(mark) {
        let count = stream.read(&mut some).unwrap();
        assert_ne!(count, 0, "no {mark:?} in {:?}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&some[..count]);
    }
    stream
}

/// The connection ends with its server.
fn ends(mut stream: UnixStream) {
    let mut rest = Vec::new();
    // However it ends.
    let _ = stream.read_to_end(&mut rest);
}

fn nothing_runs(server: &Server) {
    let store = server.place.dir.path().join("store").display().to_string();
    server.place.wait_for("the end of what it began", || processes_of(&store, server.pid()) == 0);
}

/// Folders that are there while something is made. A pull's stay, for the next one to go on from.
fn unfinished(server: &Server) -> Vec<String> {
    let names = std::fs::read_dir(server.place.dir.path().join("store")).unwrap().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with('.')).collect()
}

/// An archive with a Containerfile of these lines.
fn context(lines: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("Dockerfile"), lines).unwrap();
    Command::new("tar").arg("-C").arg(folder.path()).args(["-c", "Dockerfile"]).output().unwrap().stdout
}

#[test]
fn a_build_ends_with_its_server_and_leaves_nothing() {
    let Some(mut server) = Server::start() else { return };
    let slow = context("FROM debian\nRUN echo begun && sleep 1000\n");
    let stream = begin(&server, "POST /build?t=made", &slow, "begun\\n\"}");
    server.kill();
    ends(stream);
    nothing_runs(&server);
    server.serve_again();
    assert_eq!(unfinished(&server), [""; 0]);
    assert_eq!(server.ask("GET", "/images/made/json", "").0, 404);
    ends(begin(
        &server,
        "POST /build?t=made",
        &context("FROM debian\nRUN echo begun\n"),
        "Successfully tagged",
    ));
    assert_eq!(server.ask("GET", "/images/made/json", "").0, 200);
}

#[test]
fn a_pull_goes_on_with_the_next_server_where_it_was() {
    const SIZES: &[usize] = &[8 << 20];
    let Some(mut server) = Server::start() else { return };
    let (registry, arrived, go_on) = held_back(SIZES);
    let pull = format!("POST /images/create?fromImage={}/big&tag=latest", registry.domain);
    let stream = begin(&server, &pull, b"", "HTTP/1.1 200");
    arrived.recv().unwrap();
    let partial = server.place.dir.path().join("store/partial");
    let kept = || {
        let files = std::fs::read_dir(&partial).into_iter().flatten().flatten();
        files.map(|file| file.metadata().map_or(0, |meta| meta.len())).sum::<u64>()
    };
    server.place.wait_for("some of it", || kept() > 0);
    server.kill();
    ends(stream);
    let before = kept();
    server.serve_again();
    assert_eq!(unfinished(&server), [""; 0]);
    *go_on.lock().unwrap() = true;
    let name = format!("{}/big:latest", registry.domain);
    ends(begin(&server, &pull, b"", "Downloaded newer image"));
    assert_eq!(server.ask("GET", &format!("/images/{name}/json"), "").0, 200);
    let ranges: Vec<usize> = registry.asked().iter().filter_map(|request| request.range()).collect();
    assert!(
        ranges.iter().any(|from| *from > 0 && *from as u64 <= before),
        "{ranges:?}, {before} bytes were there"
    );
}

#[test]
fn a_command_that_somebody_is_attached_to_goes_on() {
    let Some(mut server) = Server::start() else { return };
    for isolation in ["container", "vm"] {
        let script = "n=0; while :; do n=$((n+1)); echo line $n; sleep 0.1; done";
        let run =
            ["run", "-d", "--name", "web", "--isolation", isolation, "debian", "--", "sh", "-c", script];
        server.place.strata(&run);
        let attach = "POST /containers/web/attach?stream=1&stdout=1";
        let stream = begin(&server, attach, b"", "line ");
        server.kill();
        ends(stream);
        let lines = || server.place.strata(&["logs", "web"]).lines().count();
        let before = lines();
        server.place.wait_for("more lines", || lines() > before);
        server.serve_again();
        drop(begin(&server, attach, b"", "line "));
        assert_eq!(server.ask("DELETE", "/containers/web?force=1", "").0, 204, "{isolation}");
    }
    nothing_runs(&server);
}
