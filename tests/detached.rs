//! Workloads in the background, in machines and in containers: what they write and how they end is never lost, whatever dies.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{Ended, PATIENCE, copy_store, finish, start_flags, strata};

/// A store of its own for workloads, with the kernel and the image of the assets.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub isolation: &'static str,
}

impl Place {
    /// One for machines.
    pub fn new() -> Option<Place> {
        Place::each().next()
    }

    /// One for machines and, as root, one for containers.
    pub fn each() -> impl Iterator<Item = Place> {
        let kinds = if rustix::process::geteuid().is_root() { &["vm", "container"][..] } else { &["vm"] };
        kinds.iter().filter_map(|isolation| {
            let dir = tempfile::tempdir().unwrap();
            copy_store(&dir.path().join("store"))?;
            Some(Place { dir, isolation })
        })
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = strata();
        command.env("STRATA_ROOT", self.dir.path().join("store")).args(arguments);
        command
    }

    pub fn try_to(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    pub fn strata(&self, arguments: &[&str]) -> String {
        let ended = self.try_to(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    pub fn start(&self, flags: &[&str], command: &str) -> String {
        let how: Vec<String> = start_flags().filter(|_| !flags.contains(&"--start")).collect();
        let how: Vec<&str> = how.iter().map(String::as_str).collect();
        let run = ["run", "-d", "--isolation", self.isolation];
        let all = [&run, &how[..], flags, &["debian", "--", "sh", "-c", command]].concat();
        self.strata(&all).trim().to_owned()
    }

    pub fn state(&self, name: &str) -> Value {
        serde_json::from_str::<Value>(&self.strata(&["inspect", name])).unwrap()["state"].clone()
    }

    pub fn wait_for(&self, what: &str, mut is: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "{what} never came");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Place {
    /// Nothing is left running when a test fails.
    fn drop(&mut self) {
        let names = finish(self.command(&["ps", "-aq"])).stdout;
        for name in names.lines() {
            finish(self.command(&["rm", "-f", name]));
        }
    }
}

fn exists(pid: &Value) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // One that nobody has waited for yet is dead all the same.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[test]
fn a_workload_outlives_who_started_it_and_tells_how_it_ended() {
    for place in Place::each() {
        let id =
            place.start(&["--name", "one"], "echo out; echo err >&2; read x < /dev/null; sleep 1; exit 7");
        assert_eq!(id.len(), 64);
        assert!(place.strata(&["ps"]).contains("one"));
        let again = place.try_to(&["run", "-d", "--name", "one", "debian", "true"]);
        again.expect_failure(125, &["another workload has it"]);
        assert_eq!(place.strata(&["wait", &id[..12]]), "7\n");
        assert_eq!(place.strata(&["wait", "one"]), "7\n");
        let logs = place.try_to(&["logs", "one"]);
        assert_eq!(logs.stdout, "out\n");
        assert!(logs.stderr.ends_with("err\n"), "{logs:?}");
        assert!(!place.strata(&["ps"]).contains("one") && place.strata(&["ps", "-a"]).contains("exited (7)"));
        place.strata(&["rm", "one"]);
        place.try_to(&["inspect", "one"]).expect_failure(125, &["no workload \"one\""]);
        assert!(is_empty(&place.dir.path().join("store/workloads")));
    }
}

#[test]
fn who_follows_a_log_for_a_reader_that_leaves_ends() {
    let Some(place) = Place::new() else { return };
    for (name, script) in [("loud", "while echo line; do :; done"), ("quiet", "echo line; exec sleep 100000")]
    {
        place.start(&["--name", name], script);
        let mut logs = place.command(&["logs", "--follow", name]);
        let mut logs = logs.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut line = [0; 5];
        std::io::Read::read_exact(&mut logs.stdout.take().unwrap(), &mut line).unwrap();
        assert_eq!(&line, b"line\n");
        place.wait_for("its end", || logs.try_wait().unwrap().is_some());
        assert_eq!(logs.wait().unwrap().code(), Some(0), "{name}");
    }
}

/// But for the lock, and what is told of those that were there.
fn is_empty(folder: &Path) -> bool {
    let stays = |name: std::ffi::OsString| name == "lock" || name == "events.json";
    std::fs::read_dir(folder).unwrap().all(|entry| stays(entry.unwrap().file_name()))
}

#[test]
fn one_whose_starter_was_killed_in_between_can_be_removed_at_once() {
    let Some(place) = Place::new() else { return };
    let id = place.strata(&["create", "debian", "--", "true"]).trim().to_owned();
    // As the starter does: it listens, and waits for a start that never comes.
    let mut monitor = place.command(&["monitor", &id]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(monitor.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "listening\n");
    place.strata(&["rm", &id]);
    assert!(monitor.wait().unwrap().success());
    assert_eq!(place.strata(&["ps", "-aq"]), "");
}

#[test]
fn nothing_is_left_of_what_a_check_began_whose_time_was_over() {
    for place in Place::each() {
        // What has left its session goes too.
        let check = "trap '' TERM; test -e /tmp/quick && exit 0; setsid sleep 1000 & sleep 1000; sleep 1000";
        let flags = ["--health-cmd", check, "--health-interval", "50ms", "--health-timeout", "300ms"];
        place.start(
            &[&flags[..], &["--name", "one", "--health-retries", "1"]].concat(),
            "exec tail -f /dev/null",
        );
        place.wait_for("illness", || place.state("one")["health"]["status"] == "unhealthy");
        place.strata(&["exec", "one", "touch", "/tmp/quick"]);
        place.wait_for("health", || place.state("one")["health"]["status"] == "healthy");
        // The dead that a container's own command does not wait for are nothing any more.
        let living = "for stat in /proc/[0-9]*/stat; do read -r pid name state rest <$stat; \
                      case $name$state in '(sleep)Z') ;; '(sleep)'*) echo $pid;; esac; done 2>/dev/null";
        assert_eq!(place.strata(&["exec", "one", "sh", "-c", living]), "");
    }
}

#[test]
fn a_command_with_a_time_is_killed_when_it_is_over() {
    for place in Place::each() {
        place.start(&["--name", "one"], "exec tail -f /dev/null");
        let late = place.try_to(&["exec", "--timeout", "200ms", "one", "sleep", "1000"]);
        late.expect_failure(124, &["exec in one: killed after 0.2 s"]);
        assert_eq!(place.try_to(&["exec", "--timeout", "10m", "one", "sh", "-c", "exit 7"]).code(), 7);
    }
}

#[test]
fn a_workload_is_what_its_image_was_when_it_was_made() {
    for place in Place::each() {
        place.start(&["--name", "one"], "cat /etc/mark || echo none");
        place.strata(&["wait", "one"]);
        // Another image takes its name, the last one that it had, and nobody uses the old one just now.
        let folder = place.dir.path().join("context");
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("mark"), "other\n").unwrap();
        std::fs::write(folder.join("Containerfile"), "FROM debian\nCOPY mark /etc/mark\n").unwrap();
        place.strata(&["image", "build", "-t", "debian", folder.to_str().unwrap()]);
        place.strata(&["image", "prune"]);
        place.strata(&["start", "one"]);
        place.strata(&["wait", "one"]);
        assert_eq!(place.try_to(&["logs", "one"]).stdout, "none\nnone\n");
        let now = place.strata(&["run", "--isolation", place.isolation, "debian", "cat", "/etc/mark"]);
        assert_eq!(now, "other\n");
        // With the workload goes what it kept.
        place.strata(&["rm", "one"]);
        let pruned: Value = serde_json::from_str(&place.strata(&["image", "prune", "--json"])).unwrap();
        assert!(pruned["files"].as_u64().unwrap() > 0, "{pruned}");
    }
}

#[test]
fn asked_to_end_killed_paused_and_followed() {
    for place in Place::each() {
        place.start(&["--name", "a"], "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done");
        place.wait_for("the first line", || place.strata(&["logs", "a"]) == "up\n");
        place.strata(&["pause", "a"]);
        assert_eq!(place.state("a")["status"], "paused");
        place.strata(&["unpause", "a"]);
        place.try_to(&["rm", "a"]).expect_failure(125, &["a is running"]);
        place.strata(&["stop", "-t", "300", "a"]);
        let state = place.state("a");
        assert_eq!((state["status"].as_str(), state["exit_code"].as_u64()), (Some("exited"), Some(3)));
        assert_eq!(place.strata(&["logs", "-f", "a"]), "up\nasked\n");
        assert_eq!(place.strata(&["logs", "-n", "1", "a"]), "asked\n");
        // One that does not listen, and is removed by itself.
        place.start(&["--name", "b", "--rm"], "trap '' TERM; while :; do sleep 0.1; done");
        place.strata(&["kill", "b"]);
        place.wait_for("the removal", || !place.strata(&["ps", "-a"]).contains(" b "));
        place.try_to(&["kill", "a"]).expect_failure(125, &["a is not running"]);
    }
}

#[test]
fn what_is_typed_reaches_the_command() {
    for place in Place::each() {
        place.start(&["-i", "--name", "cat"], "read line; echo \"got $line\"; exit 4");
        let file = place.dir.path().join("input");
        std::fs::write(&file, "hello\n").unwrap();
        let mut attach = place.command(&["attach", "cat"]);
        attach.stdin(std::fs::File::open(&file).unwrap());
        let ended = finish(attach);
        assert_eq!((ended.code(), ended.stdout.as_str()), (4, "got hello\n"), "{ended:?}");
        assert_eq!(place.strata(&["logs", "cat"]), "got hello\n");
    }
}

#[test]
fn a_killed_monitor_leaves_the_truth() {
    for place in Place::each() {
        let id = place.start(&["--name", "lost"], "echo before; sleep 1000");
        place.wait_for("the first line", || place.strata(&["logs", "lost"]) == "before\n");
        let state = place.state("lost");
        let monitor = i32::try_from(state["monitor_pid"].as_i64().unwrap()).unwrap();
        let pid = rustix::process::Pid::from_raw(monitor).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        place.wait_for("the end of the machine", || !exists(&state["worker_pid"]));
        // The machine dies with the monitor's first thread, its lock goes with the last.
        place.wait_for("its loss", || place.state("lost")["status"] == "lost");
        place.try_to(&["wait", "lost"]).expect_failure(125, &["it is lost"]);
        assert_eq!(place.strata(&["logs", "lost"]), "before\n");
        place.strata(&["rm", "lost"]);
        assert!(!Path::new("/run/strata/run").join(&id).exists(), "what is left of a container goes with it");
    }
}

#[test]
fn a_server_starts_what_was_always_to_run_and_is_lost() {
    for place in Place::each() {
        for (name, policy) in [("kept", "always"), ("gone", "on-failure")] {
            place.start(&["--name", name, "--restart", policy], "echo up; sleep 1000");
            place.wait_for("the first line", || place.strata(&["logs", name]) == "up\n");
            let monitor = place.state(name)["monitor_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            let pid = rustix::process::Pid::from_raw(monitor.unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            place.wait_for("its loss", || place.state(name)["status"] == "lost");
        }
        let socket = format!("unix://{}", place.dir.path().join("d.sock").display());
        let mut server = place.command(&["serve", "--listen", &socket]).spawn().unwrap();
        place.wait_for("its start", || place.strata(&["logs", "kept"]) == "up\nup\n");
        assert_eq!(place.state("kept")["status"], "running");
        assert_eq!(place.state("gone")["status"], "lost");
        server.kill().unwrap();
        server.wait().unwrap();
    }
}

#[test]
fn as_much_of_the_output_is_kept_as_its_flags_say() {
    for place in Place::each() {
        let flags = ["--name", "one", "--log-opt", "max-size=1k", "--log-opt", "max-file=2"];
        place.start(&flags, "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); done");
        assert_eq!(place.strata(&["wait", "one"]), "0\n");
        let said = place.strata(&["logs", "one"]);
        assert!(said.ends_with("line 198\nline 199\n") && !said.contains("line 100\n"), "{said}");
        let wrong = place.try_to(&["run", "-d", "--log-opt", "max-size=x", "debian", "true"]);
        wrong.expect_failure(2, &["max-size=x"]);
    }
}

#[test]
fn nothing_is_left_of_a_workload_whose_worker_is_killed() {
    for place in Place::each() {
        for flags in [&["--name", "one"][..], &["--name", "one", "--rm"]] {
            let id = place.start(flags, "echo up; sleep 1000");
            place.wait_for("the first line", || place.try_to(&["logs", "one"]).stdout == "up\n");
            let worker = place.state("one")["worker_pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            let pid = rustix::process::Pid::from_raw(worker.unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            if flags.contains(&"--rm") {
                place.wait_for("its removal", || place.try_to(&["inspect", "one"]).code() == 125);
            } else {
                assert_eq!(place.strata(&["wait", "one"]), "137\n");
                place.strata(&["rm", "one"]);
            }
            let kept = Command::new("find").args(["/run/strata", "/sys/fs/cgroup", "-name", &id]).output();
            assert_eq!(String::from_utf8_lossy(&kept.unwrap().stdout), "", "{flags:?}");
        }
    }
}

#[test]
fn it_is_started_again_as_often_as_the_policy_says() {
    for place in Place::each() {
        place.start(&["--name", "again", "--restart", "on-failure:1"], "echo run; exit 5");
        assert_eq!(place.strata(&["wait", "again"]), "5\n");
        assert_eq!(
            (place.state("again")["restarts"].as_u64(), place.strata(&["logs", "again"])),
            (Some(1), "run\nrun\n".into())
        );
        let failed = place.try_to(&["run", "-d", "--name", "none", "debian", "--", "no-such-command"]);
        failed.expect_failure(125, &["no-such-command", "not found in PATH"]);
        assert_eq!(place.state("none")["exit_code"], 127);
    }
}

#[test]
fn another_command_runs_beside_it() {
    for place in Place::each() {
        place.start(&["--name", "one", "-e", "A=b", "-w", "/tmp"], "echo own > own; exec sleep 1000");
        let exec = |flags: &[&str], script: &str| {
            place.try_to(&[&["exec"], flags, &["one", "sh", "-c", script]].concat())
        };
        place.wait_for("its file", || exec(&[], "cat own").stdout == "own\n");
        let ended = exec(&["-e", "C=d"], "echo $A $C; pwd; echo wrong >&2; exit 5");
        assert_eq!((ended.code(), ended.stdout.as_str()), (5, "b d\n/tmp\n"), "{ended:?}");
        assert!(ended.stderr.ends_with("wrong\n"), "{ended:?}");
        assert_eq!(exec(&["-u", "1000:7", "-w", "/usr"], "id -u; id -g; pwd").stdout, "1000\n7\n/usr\n");
        assert_eq!(exec(&["-t"], "test -t 0 && test -t 1 && echo terminal").stdout, "terminal\r\n");
        let mut with_input = place.command(&["exec", "-i", "one", "cat"]);
        let file = place.dir.path().join("input");
        std::fs::write(&file, "x".repeat(300_000)).unwrap();
        with_input.stdin(std::fs::File::open(&file).unwrap());
        assert_eq!(finish(with_input).stdout.len(), 300_000);
        place.try_to(&["exec", "one", "no-such"]).expect_failure(127, &["no-such"]);
        place.strata(&["exec", "-d", "one", "sh", "-c", "echo late > late; sleep 1000"]);
        place.wait_for("the other's file", || exec(&[], "cat late").stdout == "late\n");
        place.strata(&["pause", "one"]);
        place.try_to(&["exec", "one", "true"]).expect_failure(125, &["it is paused"]);
        place.strata(&["unpause", "one"]);
        // More than the connections a guest may open of its own.
        let all: Vec<_> = (0..30).map(|n| exec(&[], &format!("exit {n}")).code()).collect();
        assert_eq!(all, (0..30).collect::<Vec<_>>());
        place.strata(&["stop", "-t", "0", "one"]);
        place.try_to(&["exec", "one", "true"]).expect_failure(125, &["it is exited"]);
    }
}

#[test]
fn made_started_renamed_and_started_again() {
    for place in Place::each() {
        let flags = ["create", "--isolation", place.isolation, "-i", "--name", "one", "debian", "--"];
        let script = "cat; echo out; echo err >&2; exit 6";
        let id = place.strata(&[&flags[..], &["sh", "-c", script]].concat());
        assert_eq!(place.state(id.trim())["status"], "created");
        place.strata(&["stop", "one"]);
        place.try_to(&["attach", "one"]).expect_failure(125, &["one is not running"]);
        // All that it writes is seen, and what it reads is ours.
        let file = place.dir.path().join("input");
        std::fs::write(&file, "typed\n").unwrap();
        let mut attached = place.command(&["start", "--attach", "one"]);
        attached.stdin(std::fs::File::open(&file).unwrap());
        let ended = finish(attached);
        assert_eq!((ended.code(), ended.stdout.as_str()), (6, "typed\nout\n"), "{ended:?}");
        assert!(ended.stderr.ends_with("err\n"), "{ended:?}");
        place.strata(&["rename", "one", "two"]);
        place.try_to(&["start", "one"]).expect_failure(125, &["no workload \"one\""]);
        place.try_to(&["rename", "two", "two"]).expect_failure(125, &["another workload has it"]);
        place.try_to(&["rename", "two", "-x"]).expect_failure(2, &[]);
        assert_eq!(place.strata(&["start", "two"]), "two\n");
        place.try_to(&["start", "two"]).expect_failure(125, &["it is running"]);
        let started = place.state("two")["started_ms"].as_u64();
        place.strata(&["restart", "-t", "0", "two"]);
        assert!(place.state("two")["started_ms"].as_u64() > started);
        place.strata(&["kill", "two"]);
        assert_eq!(place.state("two")["exit_code"], 137);
        // One that cannot run says so each time.
        let wrong = ["create", "--isolation", place.isolation, "--name", "wrong", "debian", "no-such"];
        place.strata(&wrong);
        place.try_to(&["start", "wrong"]).expect_failure(125, &["start wrong", "no-such"]);
        place.try_to(&["start", "-a", "wrong"]).expect_failure(127, &["no-such"]);
    }
}

#[test]
fn checks_say_whether_it_is_well() {
    for place in Place::each() {
        let well = "test ! -e /tmp/ill && echo fine || { echo broken; exit 1; }";
        let flags =
            ["--name", "one", "--health-cmd", well, "--health-interval", "200ms", "--health-retries", "2"];
        place.start(&flags, "exec sleep 1000");
        place.wait_for("health", || place.state("one")["health"]["status"] == "healthy");
        assert_eq!(place.state("one")["health"]["output"], "fine\n");
        assert!(place.strata(&["ps"]).contains("(healthy)"));
        place.strata(&["exec", "one", "touch", "/tmp/ill"]);
        place.wait_for("illness", || place.state("one")["health"]["status"] == "unhealthy");
        let health = &place.state("one")["health"];
        assert_eq!((&health["output"], &health["exit_code"]), (&Value::from("broken\n"), &Value::from(1)));
        place.strata(&["exec", "one", "rm", "/tmp/ill"]);
        place.wait_for("health", || place.state("one")["health"]["status"] == "healthy");
        place.strata(&["stop", "-t", "0", "one"]);
        assert_eq!(place.state("one")["health"], Value::Null);
        // A check that takes too long is one that failed.
        let slow = ["--health-cmd", "sleep 1000", "--health-interval", "50ms", "--health-timeout", "100ms"];
        place.start(&[&slow[..], &["--name", "two", "--health-retries", "1"]].concat(), "exec sleep 1000");
        place.wait_for("illness", || place.state("two")["health"]["status"] == "unhealthy");
        assert!(place.state("two")["health"]["output"].as_str().unwrap().contains("longer than 0.1 s"));
    }
}
