//! What `docker events` tells, whoever does what it tells of.

use crate::docker::{RUNTIMES, Server, refused};

/// All that happened, as a line each: kind, what, and of what by its name.
fn events(server: &Server, filters: &[&str]) -> Vec<String> {
    let shape = "{{.Type}} {{.Action}} {{or .Actor.Attributes.name .Actor.ID}}";
    let mut all = vec!["events", "--since", "1", "--until", "1s", "--format", shape];
    filters.iter().for_each(|filter| all.extend(["--filter", filter]));
    // Until a second ago: what was done since is told by the next second.
    std::thread::sleep(std::time::Duration::from_millis(2100));
    server.docker(&all).lines().map(|line| line.trim_end().to_owned()).collect()
}

#[test]
fn images_and_volumes_have_events_whoever_deals_with_them() {
    let Some(server) = Server::with_client() else { return };
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("all.tar");
    let archive = archive.to_str().unwrap();
    server.place.strata(&["image", "tag", "debian", "mine:1"]);
    server.docker(&["tag", "debian", "mine:2"]);
    server.docker(&["save", "-o", archive, "mine:1", "mine:2"]);
    server.docker(&["rmi", "mine:1"]);
    server.place.strata(&["image", "rm", "mine:2"]);
    assert!(server.docker(&["load", "-i", archive]).contains("Loaded image: mine:2"));
    assert_eq!(server.docker(&["images", "-q", "mine"]).lines().count(), 2);
    let images: Vec<String> = events(&server, &["type=image"]);
    let expected = [
        "tag mine:1",
        "tag mine:2",
        "save mine:1",
        "save mine:2",
        "untag mine:1",
        "untag mine:2",
        "load mine:1",
        "load mine:2",
    ];
    assert_eq!(images, expected.map(|event| format!("image {event}")));
    assert_eq!(events(&server, &["image=mine:2", "event=load"]), ["image load mine:2"]);

    server.place.strata(&["volume", "create", "data"]);
    for runtime in RUNTIMES {
        server.docker(&["run", "--rm", "-v", "data:/data", "--runtime", runtime, "debian", "true"]);
    }
    server.docker(&["volume", "rm", "data"]);
    let volumes = events(&server, &["volume=data"]);
    let words = ["create", "mount", "unmount", "mount", "unmount", "destroy"];
    assert_eq!(volumes, words.map(|word| format!("volume {word} data")));
    server.docker(&["volume", "prune", "-f"]);
    assert_eq!(events(&server, &["type=volume", "event=prune"]), ["volume prune"]);
    assert_eq!(events(&server, &["scope=swarm"]), [""; 0]);
    refused(&server.try_to(&["events", "--until", "1s", "--filter", "fly=x"]), 1, "invalid filter 'fly'");
}

#[test]
fn commands_and_what_ends_a_container_are_told() {
    let Some(server) = Server::with_client() else { return };
    for runtime in RUNTIMES {
        let name = format!("one-{runtime}");
        server.docker(&["run", "-d", "--name", &name, "--runtime", runtime, "debian", "sleep", "1000"]);
        server.docker(&["exec", &name, "true"]);
        server.place.strata(&["exec", &name, "--", "true"]);
        server.docker(&["restart", "-t", "0", &name]);
        server.docker(&["rm", "-f", &name]);
        let told = events(&server, &[&format!("container={name}"), "type=container"]);
        let told: Vec<&str> = told.iter().filter_map(|line| line.split(' ').nth(1)).collect();
        let exec = ["exec_create:", "exec_start:", "exec_die"];
        let stop: &[&str] = &["kill", "kill", "die", "stop", "start", "restart", "kill", "die", "destroy"];
        let mut told = told;
        // A machine's command ends by the first signal.
        told.dedup();
        let mut expected = [&["create", "start"][..], &exec, &exec, stop].concat();
        expected.dedup();
        assert_eq!(told, expected, "{runtime}");
    }
    let script = "head -c 300M /dev/zero | tail -c 299M | wc -c";
    server.docker(&["run", "-d", "--name", "fat", "--memory", "32m", "debian", "sh", "-c", script]);
    server.docker(&["wait", "fat"]);
    assert_eq!(events(&server, &["container=fat", "event=oom"]), ["container oom fat"]);
    assert_eq!(server.docker(&["inspect", "-f", "{{.State.OOMKilled}}", "fat"]), "true\n");
    server.docker(&["rm", "fat"]);
}
