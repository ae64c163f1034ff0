//! `strata fork`: copies of a workload go on from where it was, each on its own; and `strata snapshot` of one in the background.

use serde_json::Value;

use crate::detached::Place;
use crate::support::{finish, start};

/// Says who it is whenever it is asked to by a signal, and goes on until it is told to end.
const LOOP: &str = "trap 'echo $n $(cat /proc/sys/kernel/random/uuid)' USR1; trap 'exit $n' TERM; n=3; echo up; \
                    while :; do sleep 0.05; done";

#[test]
fn copies_go_on_from_where_the_workload_was_and_each_is_its_own() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "web"], LOOP);
    place.wait_for("the first line", || place.strata(&["logs", "web"]) == "up\n");
    let made: Value =
        serde_json::from_str(&place.strata(&["fork", "web", "--count", "3", "--json"])).unwrap();
    let names: Vec<&str> =
        made.as_array().unwrap().iter().map(|copy| copy["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["web-1", "web-2", "web-3"]);
    for name in ["web", "web-1", "web-2", "web-3"] {
        assert_eq!(place.state(name)["status"], "running", "{name}");
        place.strata(&["kill", "-s", "USR1", name]);
    }
    let said = |name: &str| place.strata(&["logs", name]).lines().last().unwrap_or_default().to_owned();
    let all = ["web", "web-1", "web-2", "web-3"];
    place.wait_for("every answer", || all.iter().all(|name| said(name).starts_with("3 ")));
    let mut ids: Vec<String> = all.iter().map(|name| said(name)).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 4, "random numbers are each one's own");
    // What the workload had written by then is its own; the end of one is not the others'.
    assert!(!place.strata(&["logs", "web-1"]).contains("up"));
    place.strata(&["kill", "web"]);
    place.strata(&["stop", "-t", "300", "web-1"]);
    assert_eq!(place.state("web-1")["exit_code"], 3);
    assert_eq!(place.state("web-2")["status"], "running");
    // A copy of a copy, whose parent ends: the memory is there for as long as anybody needs it.
    assert_eq!(place.strata(&["fork", "web-2"]), "web-2-1\n");
    place.strata(&["kill", "web-2", "web-3"]);
    place.strata(&["stop", "-t", "300", "web-2-1"]);
    assert_eq!(place.state("web-2-1")["exit_code"], 3);
    place.try_to(&["fork", "web"]).expect_failure(125, &["save \"web\"", "not running"]);
    place.try_to(&["fork", "none"]).expect_failure(125, &["no workload \"none\""]);
}

#[test]
fn a_workload_in_the_background_is_saved_by_any_of_its_names_and_a_policy_does_not_start_it_again() {
    let Some(place) = Place::new() else { return };
    let id = place.start(&["--restart", "always"], LOOP);
    place.wait_for("the first line", || place.strata(&["logs", &id]) == "up\n");
    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    // One that stands still goes on standing still.
    place.strata(&["pause", &id]);
    place.strata(&["snapshot", &id[..12], folder]);
    assert_eq!(place.state(&id)["status"], "paused");
    place.strata(&["unpause", &id]);
    place.strata(&["snapshot", "--stop", &id[..12], folder]);
    place.wait_for("the end", || place.state(&id)["status"] == "exited");
    assert_eq!(place.state(&id)["restarts"], 0);

    let mut restored = start(place.command(&["restore", "--name", "again", folder]));
    place.wait_for("the name", || place.strata(&["ps"]).contains(" again "));
    let taken = place.try_to(&["restore", "--name", "again", folder]);
    taken.expect_failure(125, &["name the workload", "another workload has it"]);
    place.strata(&["kill", "-s", "USR1", "again"]);
    restored.wait_for("3 ");
    assert_eq!(place.strata(&["fork", "again"]), "again-1\n");
    place.strata(&["kill", "-s", "TERM", "again"]);
    assert_eq!(restored.finish().code(), 3);
    place.wait_for("its name to go", || !place.strata(&["ps", "-a"]).contains(" again "));
    place.strata(&["kill", "again-1"]);
}

#[test]
fn one_rule_says_what_a_name_is() {
    let Some(place) = Place::new() else { return };
    for arguments in [
        &["run", "--name", "a/b", "debian"][..],
        &["run", "-d", "--name", "-x", "debian"],
        &["restore", "--name", "", "x"],
    ] {
        let ended = finish(place.command(arguments));
        assert_eq!(ended.code(), 2, "{ended:?}");
    }
}
