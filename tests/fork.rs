//! `strata fork`: copies of a workload go on from where it was, each on its own; and `strata snapshot` of one in the background.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use serde_json::Value;

use crate::detached::Place;
use crate::support::{finish, start};

/// Says who it is whenever it is asked to by a signal, and goes on until it is told to end.
const LOOP: &str = "trap 'echo $n $(cat /proc/sys/kernel/random/uuid) $(cat /etc/machine-id) $(hostname) \\
                    $(cat /etc/hostname) $(date +%s)' USR1; trap 'exit $n' TERM; n=3; echo up; \
                    while :; do sleep 0.05; done";

/// What [`LOOP`] says of its machine: random number, machine id, host name.
fn identity(line: &str) -> [String; 3] {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
    let &[_, random, machine_id, hostname, in_file, seconds] = words.as_slice() else { panic!("{line:?}") };
    assert_eq!(hostname, in_file);
    assert_eq!(machine_id.len(), 32);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(seconds.parse().unwrap()) < 600, "the clock: {line:?}");
    [random, machine_id, hostname].map(str::to_owned)
}

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
    let ids: Vec<[String; 3]> = all.iter().map(|name| identity(&said(name))).collect();
    for at in 0..3 {
        let different: std::collections::HashSet<&String> = ids.iter().map(|id| &id[at]).collect();
        assert_eq!(different.len(), 4, "each is one's own: {ids:?}");
    }
    assert_eq!(
        ids.iter().map(|id| id[2].as_str()).collect::<Vec<_>>(),
        ["debian", "web-1", "web-2", "web-3"]
    );
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
    restored.wait_for(" again");
    assert_eq!(place.strata(&["fork", "again"]), "again-1\n");
    place.strata(&["kill", "-s", "TERM", "again"]);
    assert_eq!(restored.finish().code(), 3);
    place.wait_for("its name to go", || !place.strata(&["ps", "-a"]).contains(" again "));
    place.strata(&["kill", "again-1"]);
}

/// What a server in the machine of `port` says; the connection stands once somebody has the port.
fn ask(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(b"question\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_copy_has_ports_of_its_own_and_not_those_of_the_original() {
    let Some(place) = Place::new() else { return };
    let server = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 5, ReuseAddr => 1); \
                  $| = 1; print qq{ready\\n}; while (my $c = $s->accept) { my $q = <$c>; \
                  open my $h, q{<}, q{/proc/sys/kernel/hostname}; print $c scalar <$h>; close $c }";
    let script = format!("exec perl -e '{server}'");
    let ports: Vec<u16> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap().port())
        .collect();
    let publish = |port: u16| format!("127.0.0.1:{port}:80");
    place.start(&["--name", "web", "-p", &publish(ports[0])], &script);
    place.wait_for("the server", || place.strata(&["logs", "web"]) == "ready\n");
    assert_eq!(ask(ports[0]), "debian\n");

    place.try_to(&["fork", "web", "-c", "2", "-p", &publish(ports[1])]).expect_failure(2, &["one copy"]);
    place.try_to(&["fork", "web", "-p", &publish(ports[0])]).expect_failure(125, &["fork", "publish port"]);
    assert!(!place.strata(&["ps", "-a"]).contains("web-1"), "nothing is left of it");
    assert_eq!(place.strata(&["fork", "web", "-p", &publish(ports[1])]), "web-1\n");
    assert_eq!(place.strata(&["fork", "web", "-c", "2"]), "web-2\nweb-3\n", "these have none");
    assert_eq!((ask(ports[0]), ask(ports[1])), ("debian\n".to_owned(), "web-1\n".to_owned()));
    // Not even when they begin anew.
    place.strata(&["kill", "web-2"]);
    place.wait_for("its end", || place.state("web-2")["status"] == "exited");
    place.strata(&["start", "web-2"]);
    assert_eq!(ask(ports[0]), "debian\n");

    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    let saved: Value = serde_json::from_str(&place.strata(&["snapshot", "--json", "web", folder])).unwrap();
    assert!(saved["paused_ms"].is_u64(), "{saved}");
    place.strata(&["restore", "-d", "--name", "back", "-p", &publish(ports[2]), folder]);
    place.strata(&["restore", "-d", "--name", "closed", folder]);
    assert_eq!((ask(ports[0]), ask(ports[2])), ("debian\n".to_owned(), "back\n".to_owned()));
    // A copy of one that was restored: its network is known too.
    place.strata(&["kill", "web"]);
    place.wait_for("its end", || place.state("web")["status"] == "exited");
    assert_eq!(place.strata(&["fork", "closed", "-p", &publish(ports[0])]), "closed-1\n");
    assert_eq!(ask(ports[0]), "closed-1\n");
    for name in ["web-1", "web-2", "web-3", "back", "closed", "closed-1"] {
        place.strata(&["kill", name]);
    }
}

#[test]
fn ports_of_a_machine_without_a_network_are_refused_before_it_is_saved() {
    let Some(place) = Place::new() else { return };
    place.start(&["--name", "web"], LOOP);
    place.wait_for("the first line", || place.strata(&["logs", "web"]) == "up\n");
    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    place.strata(&["snapshot", "web", folder]);
    place.strata(&["kill", "web"]);
    place.wait_for("its end", || place.state("web")["status"] == "exited");
    // One that does not run cannot be saved: what is told is what was looked at first.
    for arguments in [&["fork", "web", "-p", "8080:80"][..], &["restore", "-d", "-p", "8080:80", folder]] {
        place.try_to(arguments).expect_failure(2, &["--publish", "the machine has no network"]);
    }
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

#[test]
fn two_that_come_from_one_template_and_two_from_one_snapshot_are_not_the_same_machine() {
    let Some(place) = Place::new() else { return };
    for name in ["a", "b"] {
        place.start(&["--name", name], LOOP);
        place.wait_for("the first line", || place.strata(&["logs", name]) == "up\n");
        place.strata(&["kill", "-s", "USR1", name]);
    }
    let said = |name: &str| place.strata(&["logs", name]).lines().last().unwrap_or_default().to_owned();
    place.wait_for("every answer", || ["a", "b"].iter().all(|name| said(name).starts_with("3 ")));
    let [one, two] = ["a", "b"].map(|name| identity(&said(name)));
    assert!(one[0] != two[0] && one[1] != two[1], "{one:?} {two:?}");

    let at = place.dir.path().join("snap");
    let folder = at.to_str().unwrap();
    place.strata(&["snapshot", "--stop", "a", folder]);
    // At the same time, from the same files, and without names of their own.
    let mut restored: Vec<_> = (0..2).map(|_| start(place.command(&["restore", folder]))).collect();
    let names = || -> Vec<String> {
        let list = place.strata(&["ps"]);
        list.lines()
            .filter(|line| line.contains("snap-"))
            .map(|line| line.split_whitespace().nth(1).unwrap().to_owned())
            .collect()
    };
    place.wait_for("both names", || names().len() == 2);
    for name in names() {
        place.strata(&["kill", "-s", "USR1", &name]);
    }
    let mut seen = vec![one[1].clone(), two[1].clone()];
    for copy in &mut restored {
        copy.wait_for("\n");
    }
    for name in names() {
        place.strata(&["kill", "-s", "TERM", &name]);
    }
    for copy in restored {
        let ended = copy.finish();
        assert_eq!(ended.code(), 3, "{ended:?}");
        let id = identity(ended.stdout.lines().last().unwrap());
        assert!(id[2].starts_with("snap-"), "{id:?}");
        assert!(!seen.contains(&id[1]), "{id:?} {seen:?}");
        seen.push(id[1].clone());
    }
}

/// The test's kernel has no driver for it; one that has asks for the ID's address, of which AML makes the note that `printf` makes.
#[test]
fn a_copy_has_another_generation_id_and_an_event_says_so_to_who_has_asked() {
    let Some(place) = Place::new() else { return };
    let ask = "printf '\\001' | dd of=/dev/mem bs=1 seek=1044496 conv=notrunc 2>/dev/null;";
    for (name, ask, events) in [("gen", ask, 1), ("silent", "", 0)] {
        generation_of_copies(&place, name, ask, events);
    }
}

fn generation_of_copies(place: &Place, name: &str, ask: &str, events: u64) {
    let script = "show() { od -An -tx1 -j 1044480 -N 16 /dev/mem; grep -i ged /proc/interrupts || echo none; }; show; ASK \\
                  trap show USR1; echo up; while :; do sleep 0.05; done"
        .replace("ASK", ask);
    place.start(&["--start", "cold", "--name", name], &script);
    let lines =
        |name: &str| -> Vec<String> { place.strata(&["logs", name]).lines().map(str::to_owned).collect() };
    place.wait_for("the first lines", || lines(name).last().is_some_and(|line| line == "up"));
    place.strata(&["fork", name, "-c", "2"]);
    let copies = [format!("{name}-1"), format!("{name}-2")];
    for (name, answer) in [(name, 5), (&copies[0], 2), (&copies[1], 2)] {
        place.strata(&["kill", "-s", "USR1", name]);
        place.wait_for("an answer", || lines(name).len() >= answer);
    }
    let first = lines(name);
    let count = |line: &str| line.split_whitespace().nth(1).and_then(|count| count.parse::<u64>().ok());
    assert_eq!((&first[0], &first[1]), (&first[3], &first[4]), "the original is what it was");
    assert_eq!(count(&first[1]), Some(0), "{first:?}");
    let (one, two) = (lines(&copies[0]), lines(&copies[1]));
    assert!(first[0] != one[0] && first[0] != two[0] && one[0] != two[0], "{first:?} {one:?} {two:?}");
    assert_eq!((count(&one[1]), count(&two[1])), (Some(events), Some(events)), "{one:?} {two:?}");
    place.strata(&["kill", name, &copies[0], &copies[1]]);
}

#[test]
fn memory_that_a_guest_has_freed_is_the_hosts_again() {
    let Some(place) = Place::new() else { return };
    let script =
        "trap 'rm /tmp/x' USR1; head -c 150M /dev/zero > /tmp/x; echo full; while :; do sleep 0.2; done";
    place.start(&["--name", "eater"], script);
    place.wait_for("its memory", || place.strata(&["logs", "eater"]) == "full\n");
    let figure = |name: &str| {
        let all: Value = serde_json::from_str(&place.strata(&["stats", "--json"])).unwrap();
        all[0][name].as_u64().unwrap_or_default()
    };
    assert!(figure("own_memory_bytes") > 150 << 20);
    let before = figure("returned_bytes");
    place.strata(&["kill", "-s", "USR1", "eater"]);
    place.wait_for("the memory to come back", || figure("own_memory_bytes") < 120 << 20);
    assert!(figure("returned_bytes") > before);
    place.strata(&["kill", "eater"]);
}

#[test]
fn a_machine_that_waits_gives_back_what_is_kept_for_its_speed_and_still_answers() {
    let Some(place) = Place::new() else { return };
    let script = "trap 'echo answered' USR1; echo up; while :; do sleep 1000 & wait; done";
    place.start(&["--start", "cold", "--engine", "jit", "--name", "idle"], script);
    place.wait_for("the first line", || place.strata(&["logs", "idle"]) == "up\n");
    let own = || -> u64 {
        let all: Value = serde_json::from_str(&place.strata(&["stats", "--json"])).unwrap();
        all[0]["own_memory_bytes"].as_u64().unwrap_or_default()
    };
    // Decoded and translated code of its start is more than that.
    let before = own();
    place.wait_for("memory to come back", || own() + (20 << 20) < before);
    place.strata(&["kill", "-s", "USR1", "idle"]);
    place.wait_for("an answer", || place.strata(&["logs", "idle"]) == "up\nanswered\n");
    place.strata(&["kill", "idle"]);
}
