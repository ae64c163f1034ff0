//! What docker's client tells of the whole server, and removes of it: `docker system`, and what is pruned by its age.

use crate::docker::{Server, refused};

fn names(server: &Server, list: &[&str]) -> Vec<String> {
    let mut names: Vec<String> = server.docker(list).lines().map(str::to_owned).collect();
    names.sort();
    names
}

#[test]
fn what_is_older_than_asked_for_is_pruned_and_the_rest_stays() {
    let Some(server) = Server::with_client() else { return };
    let network = format!("old-{}", std::process::id());
    server.docker(&["network", "create", &network]);
    server.docker(&["create", "--name", "old", "debian", "true"]);
    let containers = || names(&server, &["ps", "-a", "--format", "{{.Names}}"]);
    let networks = || names(&server, &["network", "ls", "-q", "--filter", "type=custom"]);
    let prune = |kind: &str, until: &str| {
        server.docker(&[kind, "prune", "-f", "--filter", &format!("until={until}")])
    };
    for kind in ["container", "network", "image", "builder"] {
        prune(kind, "24h");
        refused(&server.try_to(&[kind, "prune", "-f", "--filter", "until=soon"]), 1, "until");
    }
    assert_eq!((containers(), networks().len()), (vec!["old".to_owned()], 1));
    let later = "2100-01-01T00:00:00Z";
    assert!(prune("container", later).contains("Deleted Containers"));
    assert!(prune("network", later).contains(&network));
    assert_eq!((containers().len(), networks().len()), (0, 0));
    // As docker has it, a volume has no age.
    refused(&server.try_to(&["volume", "prune", "-f", "--filter", "until=24h"]), 1, "until");
    assert_eq!(names(&server, &["images", "-q"]).len(), 1);
    server.docker(&["image", "prune", "-a", "-f", "--filter", "until=1970-01-02T00:00:00Z"]);
    assert_eq!(names(&server, &["images", "-q"]).len(), 1);
}

#[test]
fn all_that_nobody_uses_is_told_of_and_pruned_at_once() {
    let Some(server) = Server::with_client() else { return };
    let network = format!("unused-{}", std::process::id());
    server.docker(&["network", "create", &network]);
    server.docker(&["volume", "create", "kept"]);
    server.docker(&["run", "--name", "done", "-v", "/nameless", "debian", "sh", "-c", "echo x > /file"]);
    server.docker(&["run", "-d", "--name", "runs", "-v", "used:/v", "debian", "sleep", "100000"]);
    let rows = names(&server, &["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]);
    assert_eq!(rows, ["Build Cache 0 0", "Containers 2 1", "Images 1 1", "Local Volumes 3 2"]);
    let verbose = server.docker(&["system", "df", "-v"]);
    for word in ["debian", "runs", "done", "kept", "used"] {
        assert!(verbose.contains(word), "no {word}: {verbose}");
    }
    let gone = server.docker(&["system", "prune", "-f", "--volumes"]);
    for word in ["Deleted Containers", &network, "Deleted Volumes", "Total reclaimed space"] {
        assert!(gone.contains(word), "no {word}: {gone}");
    }
    // Volumes with a name stay unless all are asked for, and what is used stays anyway.
    assert_eq!(names(&server, &["volume", "ls", "-q"]), ["kept", "used"]);
    assert!(server.docker(&["volume", "prune", "-a", "-f"]).contains("kept"));
    server.docker(&["system", "prune", "-a", "-f"]);
    assert_eq!(names(&server, &["volume", "ls", "-q"]), ["used"]);
    assert_eq!(names(&server, &["ps", "-a", "--format", "{{.Names}}"]), ["runs"]);
    assert_eq!(server.docker(&["exec", "runs", "echo", "here"]), "here\n");
    assert_eq!(names(&server, &["images", "-q"]).len(), 1, "what runs is used");
    server.docker(&["rm", "-f", "runs"]);
}
