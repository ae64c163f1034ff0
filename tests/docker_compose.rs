//! `docker-compose` of the distribution against `strata serve`: services that find each other, a network and a volume of theirs.

use std::path::Path;
use std::process::Command;

use crate::docker::{RUNTIMES, Server};
use crate::support::{Ended, finish};

/// A server with a file in a volume, and a client that asks it by its name.
const SERVICES: &str = r#"version: "2.4"
services:
  web:
    image: debian
    runtime: RUNTIME
    command: ["perl", "-e", "use IO::Socket::INET; my $$s = IO::Socket::INET->new(LocalPort => 80, Listen => 9); print qq{up\\n}; while (my $$c = $$s->accept) { print $$c `cat /data/word`; close $$c }"]
    volumes: ["data:/data"]
    networks:
      back:
        aliases: ["server"]
    healthcheck:
      test: ["CMD", "test", "-d", "/data"]
      interval: 1s
  client:
    image: debian
    runtime: RUNTIME
    environment: {WORD: "from compose"}
    command: ["bash", "-c", "echo $$WORD > /data/word; sleep 100000"]
    depends_on: ["web"]
    volumes: ["data:/data"]
    networks: ["back"]
networks:
  back: {}
volumes:
  data: {}
"#;

fn compose(server: &Server, folder: &Path, arguments: &[&str]) -> Ended {
    let mut command = Command::new("docker-compose");
    command.env("DOCKER_HOST", format!("unix://{}", server.socket().display()));
    command.current_dir(folder).args(arguments);
    finish(command)
}

#[test]
fn compose_starts_services_that_find_each_other_and_takes_all_of_it_down() {
    if Command::new("docker-compose").arg("version").output().is_err() {
        println!("skipped: docker-compose is not installed");
        return;
    }
    for runtime in RUNTIMES {
        let Some(server) = Server::with_client() else { return };
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join(format!("compose{}", std::process::id()));
        std::fs::create_dir(&own).unwrap();
        std::fs::write(own.join("docker-compose.yml"), SERVICES.replace("RUNTIME", runtime)).unwrap();
        let run = |arguments: &[&str]| {
            let ended = compose(&server, &own, arguments);
            assert_eq!(ended.code(), 0, "{runtime} {arguments:?}: {ended:?}");
            ended.stdout
        };
        run(&["up", "-d"]);
        let ask = "until exec 3<>/dev/tcp/server/80; do sleep 0.1; done 2>/dev/null; cat <&3";
        assert_eq!(run(&["exec", "-T", "client", "bash", "-c", ask]), "from compose\n", "{runtime}");
        assert!(run(&["ps"]).contains("web"));
        server.place.wait_for("the output", || run(&["logs", "web"]).contains("up"));
        run(&["stop", "-t", "1", "client"]);
        run(&["start", "client"]);
        // Nothing has changed: nothing is made anew.
        assert!(!run(&["up", "-d"]).contains("Recreat"));
        run(&["restart", "-t", "1", "web"]);
        assert_eq!(run(&["exec", "-T", "client", "bash", "-c", ask]), "from compose\n", "{runtime}");
        run(&["down", "-v", "-t", "1"]);
        assert_eq!(server.docker(&["ps", "-aq"]), "");
        assert_eq!(server.docker(&["volume", "ls", "-q"]), "");
        assert_eq!(server.docker(&["network", "ls", "-q", "--filter", "type=custom"]), "");
    }
}
