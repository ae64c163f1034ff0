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

#[test]
fn lists_are_asked_by_names_ports_and_volumes_and_a_part_of_a_volume_is_seen() {
    let Some(server) = Server::with_client() else { return };
    let fill = "mkdir -p /all/a; echo part > /all/a/file; ln -s / /all/out; sleep 1000";
    let start = [
        "run",
        "-d",
        "--name",
        "web",
        "-v",
        "data:/all",
        "--restart",
        "unless-stopped",
        "debian",
        "sh",
        "-c",
        fill,
    ];
    server.docker(&start);
    let listed = |filter: &str| server.docker(&["ps", "--filter", filter, "--format", "{{.Names}}"]);
    for filter in ["name=^web$", "name=^/web$", "name=we", "volume=data", "volume=/all"] {
        assert_eq!(listed(filter), "web\n", "{filter}");
    }
    for filter in ["name=^eb", "volume=other", "publish=80", "expose=80"] {
        assert_eq!(listed(filter), "", "{filter}");
    }
    assert_eq!(
        server.docker(&["inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "web"]),
        "unless-stopped\n"
    );
    let caps = ["exec", "--privileged", "web", "grep", "CapEff", "/proc/self/status"];
    assert!(server.docker(&caps).contains("000001ff"), "all of them");
    let see = |part: &str| {
        let mount = format!("type=volume,src=data,dst=/part,volume-subpath={part}");
        server.try_to(&["run", "--rm", "--mount", &mount, "debian", "cat", "/part/file"])
    };
    assert_eq!(see("a").stdout, "part\n");
    refused(&see("none"), 125, "cannot access path");
    refused(&see("out/etc"), 125, "cannot access path");
    refused(&see("../other"), 125, "subpath");
    assert!(server.docker(&["plugin", "ls"]).starts_with("ID"));
    server.docker(&["rm", "-f", "web"]);
}
