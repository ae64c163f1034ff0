//! Docker's SDK for Python against `strata serve`: what programs, and not people, do with the API. `sdk/docker_sdk.py` has it.

use std::process::Command;

use crate::docker::{RUNTIMES, Server};
use crate::support::finish;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/sdk/docker_sdk.py");

/// An interpreter that has the SDK: the distribution's own, or another that comes first.
fn python() -> Option<&'static str> {
    let has = |python: &&str| {
        let found = Command::new(python).args(["-c", "import docker"]).output();
        found.is_ok_and(|output| output.status.success())
    };
    let found = ["/usr/bin/python3", "python3"].into_iter().find(has);
    if found.is_none() {
        println!("skipped: no docker SDK for Python is installed (package python3-docker)");
    }
    found
}

#[test]
fn the_sdk_for_python_finds_all_that_it_knows_of_docker() {
    let Some(python) = python() else { return };
    for runtime in RUNTIMES {
        let Some(server) = Server::start() else { return };
        let mut command = Command::new(python);
        command.arg(SCRIPT).arg(server.socket()).arg(runtime);
        let ended = finish(command);
        assert!(ended.code() == 0 && ended.stdout.contains("ALL "), "{runtime}: {ended:?}");
    }
}
