//! The Docker Engine API: the stock `docker` command against `strata serve`, and requests that no client should send.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::detached::Place;
use crate::support::docker_registry::{DockerRegistry, has};
use crate::support::{Ended, feed, finish};

/// A server on a store of its own, and the client that speaks to it.
pub struct Server {
    process: Child,
    pub place: Place,
}

impl Server {
    pub fn start() -> Option<Server> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: docker's containers are tested as root");
            return None;
        }
        let place = Place::new()?;
        Some(Server { process: Server::serve(&place), place })
    }

    /// With docker's own client, where there is one.
    pub fn with_client() -> Option<Server> {
        if has("docker", "docker-cli") { Server::start() } else { None }
    }

    fn serve(place: &Place) -> Child {
        let mut command = place.command(&["serve", "--listen"]);
        command.arg(format!("unix://{}", place.dir.path().join("d.sock").display()));
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("Docker Engine API is at unix://"), "{line}");
        // What it says later is read, so that it never waits.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        process
    }

    /// `kill -9`
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Another one takes its place.
    pub fn serve_again(&mut self) {
        self.process = Server::serve(&self.place);
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", format!("unix://{}", self.socket().display()));
        command.env("DOCKER_CONFIG", self.place.dir.path().join("config")).env("DOCKER_BUILDKIT", "0");
        command.args(arguments);
        command
    }

    /// The server's process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn socket(&self) -> std::path::PathBuf {
        self.place.dir.path().join("d.sock")
    }

    pub fn try_to(&self, arguments: &[&str]) -> Ended {
        finish(self.command(arguments))
    }

    pub fn docker(&self, arguments: &[&str]) -> String {
        let ended = self.try_to(arguments);
        assert_eq!(ended.code(), 0, "{arguments:?}: {ended:?}");
        ended.stdout
    }

    /// Sends these bytes, and gives the status and the body of the answer.
    pub fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        // It may answer before it has read all of it, but does not close the connection then.
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.split(' ').nth(1).unwrap_or("0").parse().unwrap_or_else(|_| panic!("{answer}"));
        (status, body.to_owned())
    }

    pub fn ask(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.raw(&format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Docker's own program ended with this code, and these words on standard error.
pub fn refused(ended: &Ended, code: i32, words: &str) {
    assert!(ended.code() == code && ended.stderr.contains(words), "no {words:?}: {ended:?}");
}

pub const RUNTIMES: [&str; 2] = ["strata", "strata-vm"];

#[test]
fn the_stock_client_runs_commands_in_containers_and_machines() {
    let Some(server) = Server::with_client() else { return };
    for runtime in RUNTIMES {
        let run =
            ["run", "--rm", "-i", "--runtime", runtime, "-e", "A=b", "-w", "/tmp", "-h", "host", "debian"];
        let script = ["sh", "-c", "hostname; pwd; echo $A; cat; echo err >&2; exit 7"];
        let mut command = server.command(&[&run[..], &script].concat());
        command.stdin(std::fs::File::open("/etc/hostname").unwrap());
        let ended = finish(command);
        let input = std::fs::read_to_string("/etc/hostname").unwrap();
        assert_eq!((ended.code(), ended.stdout), (7, format!("host\n/tmp\nb\n{input}")), "{runtime}");
        assert_eq!(ended.stderr, "err\n", "{runtime}");
        let missing = server.try_to(&["run", "--rm", "--runtime", runtime, "debian", "no-such"]);
        refused(&missing, 127, "executable file not found");
        let (bytes, status) = feed(
            server.command(&["run", "--rm", "-i", "--runtime", runtime, "debian", "cat"]),
            vec![7; 3 << 20],
        );
        assert!(status.success() && bytes == vec![7; 3 << 20], "{runtime}: {} bytes", bytes.len());
    }
    assert_eq!(server.docker(&["ps", "-aq"]), "", "all of it was --rm");
    refused(&server.try_to(&["run", "--rm", "no-such-image:1"]), 125, "no-such-image");
    refused(
        &server.try_to(&["run", "--rm", "--cgroup-parent", "/x", "debian"]),
        125,
        "HostConfig.CgroupParent",
    );
}

#[test]
fn what_runs_in_the_background_is_reached_by_every_verb() {
    let Some(server) = Server::with_client() else { return };
    for runtime in RUNTIMES {
        let script = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.1; done";
        let run = [
            "run",
            "-d",
            "--name",
            "web",
            "-l",
            "team=a",
            "--runtime",
            runtime,
            "debian",
            "sh",
            "-c",
            script,
        ];
        let id = server.docker(&run).trim().to_owned();
        server.place.wait_for("up", || server.docker(&["logs", "web"]) == "up\n");
        let again = server.try_to(&run);
        refused(&again, 125, "Conflict. The container name \"/web\" is already in use");

        let row = server.docker(&[
            "ps",
            "--filter",
            "label=team=a",
            "--format",
            "{{.Names}} {{.State}} {{.Image}}",
        ]);
        assert_eq!(row, "web running debian\n");
        assert_eq!(server.docker(&["ps", "-q", "--filter", "label=team=b"]), "");
        let shape = "{{.Id}} {{.State.Running}} {{.HostConfig.Runtime}} {{index .Config.Labels \"team\"}}";
        assert_eq!(server.docker(&["inspect", "-f", shape, "web"]), format!("{id} true {runtime} a\n"));

        let exec = server.try_to(&["exec", "-e", "X=1", "web", "sh", "-c", "echo $X; echo e >&2; exit 3"]);
        assert_eq!((exec.code(), exec.stdout.as_str(), exec.stderr.as_str()), (3, "1\n", "e\n"), "{runtime}");
        let (bytes, status) = feed(server.command(&["exec", "-i", "web", "cat"]), b"typed".to_vec());
        assert!(status.success() && bytes == b"typed", "{runtime}");

        server.docker(&["pause", "web"]);
        refused(&server.try_to(&["exec", "web", "true"]), 1, "paused");
        server.docker(&["unpause", "web"]);
        let stats = server.docker(&["stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}}"]);
        assert!(stats.starts_with("web ") && !stats.contains(" 0B"), "{stats}");
        server.docker(&["rename", "web", "site"]);
        // What one face does, the other sees.
        assert!(server.place.strata(&["ps"]).contains("site"));
        assert_eq!(server.docker(&["stop", "-t", "20", "site"]), "site\n");
        assert_eq!(server.docker(&["wait", "site"]), "5\n");
        assert_eq!(server.docker(&["logs", "--tail", "1", "site"]), "bye\n");
        server.docker(&["start", "site"]);
        server.docker(&["kill", "site"]);
        assert_eq!(server.docker(&["wait", "site"]), "137\n");
        server.place.strata(&["rm", "site"]);
        refused(&server.try_to(&["inspect", "site"]), 1, "No such object");
    }
}

#[test]
fn a_terminal_is_the_clients() {
    let Some(server) = Server::with_client() else { return };
    for runtime in RUNTIMES {
        let run = ["run", "--rm", "-it", "--runtime", runtime, "debian", "sh"];
        let mut terminal = crate::support::pty::start(server.command(&run), 33, 77);
        terminal.wait_for("# ");
        terminal.types("stty size; tty\n");
        terminal.wait_for("33 77");
        terminal.wait_for("/dev/pts/");
        terminal.types("exit 4\n");
        assert_eq!(terminal.finish().code(), Some(4), "{runtime}");
    }
}

#[test]
fn events_tell_what_happens_whoever_does_it() {
    let Some(server) = Server::with_client() else { return };
    let shape = "{{.Action}} {{.Actor.Attributes.name}}";
    let mut events = server.command(&["events", "--format", shape]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(events.stdout.take().unwrap()).lines().map_while(Result::ok);
    // The client has no way to say that it hears: what is done until it does is not told.
    let heard = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !heard.load(std::sync::atomic::Ordering::Acquire) {
                server.place.strata(&["create", "--name", "probe", "debian", "--", "true"]);
                server.place.strata(&["rm", "probe"]);
            }
        });
        let first = lines.next().unwrap();
        heard.store(true, std::sync::atomic::Ordering::Release);
        assert!(first.ends_with(" probe"), "{first}");
    });
    server.docker(&["run", "-d", "--name", "one", "debian", "sleep", "1000"]);
    server.place.strata(&["stop", "-t", "0", "one"]);
    server.place.strata(&["rm", "one"]);
    let ours: Vec<String> = lines.by_ref().filter(|line| line.ends_with(" one")).take(7).collect();
    let words = ["create", "start", "kill", "kill", "die", "stop", "destroy"];
    assert_eq!(ours, words.map(|word| format!("{word} one")));
    events.kill().unwrap();
    events.wait().unwrap();
}

#[test]
fn images_are_built_and_moved() {
    let Some(server) = Server::with_client() else { return };
    let context = tempfile::tempdir().unwrap();
    let file =
        "FROM debian\nARG X=1\nENV Y=$X\nCOPY a /a\nRUN echo built-$Y > /b\nCMD [\"cat\", \"/a\", \"/b\"]\n";
    std::fs::write(context.path().join("Dockerfile"), file).unwrap();
    std::fs::write(context.path().join("a"), "hello\n").unwrap();
    let folder = context.path().to_str().unwrap();
    let build = ["build", "-t", "mine:1", "--build-arg", "X=5", "--label", "l=it's \"v\"", folder];
    let said = server.docker(&build);
    assert!(said.contains("RUN echo built-$Y") && said.contains("Successfully tagged mine:1"), "{said}");
    for runtime in RUNTIMES {
        assert_eq!(server.docker(&["run", "--rm", "--runtime", runtime, "mine:1"]), "hello\nbuilt-5\n");
    }
    let label = server.docker(&["image", "inspect", "-f", "{{.Config.Labels.l}}", "mine:1"]);
    assert_eq!(label, "it's \"v\"\n");
    assert!(server.docker(&["history", "mine:1"]).contains("RUN"));
    std::fs::write(context.path().join("Dockerfile"), "FROM debian\nRUN exit 9\n").unwrap();
    refused(&server.try_to(&["build", folder]), 1, "RUN exit 9");

    let archive = context.path().join("mine.tar");
    server.docker(&["save", "-o", archive.to_str().unwrap(), "mine:1"]);
    let id = server.docker(&["images", "-q", "mine:1"]);
    server.docker(&["rmi", id.trim()]);
    assert_eq!(server.docker(&["images", "-q", "mine:1"]), "");
    server.docker(&["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(server.docker(&["images", "-q", "mine:1"]), id);
    assert_eq!(server.docker(&["run", "--rm", id.trim(), "cat", "/b"]), "built-5\n");
    let tar = Command::new("tar").arg("-C").arg(folder).args(["-c", "a"]).output().unwrap().stdout;
    let (_, status) = feed(server.command(&["import", "-", "plain:1"]), tar);
    assert!(status.success());

    let Some(registry) = DockerRegistry::start() else { return };
    let remote = format!("{}/team/mine:1", registry.domain);
    server.docker(&["tag", "mine:1", &remote]);
    server.docker(&["push", &remote]);
    server.docker(&["rmi", &remote]);
    assert_eq!(server.docker(&["run", "--rm", &remote, "cat", "/a"]), "hello\n", "it is pulled");
}

#[test]
fn folders_of_the_host_and_published_ports_are_the_clients_to_name() {
    let Some(server) = Server::with_client() else { return };
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("in"), "in\n").unwrap();
    let folder = shared.path().to_str().unwrap();
    let perl = "use IO::Socket::INET; my $s = IO::Socket::INET->new(LocalPort => 80, Listen => 1); \
                open F, '>/v/out'; print F 'ready'; close F; my $c = $s->accept; print $c scalar <$c>; close $c";
    for runtime in RUNTIMES {
        let _ = std::fs::remove_file(shared.path().join("out"));
        let script = "cat /v/in; echo x 2>/dev/null > /v/in || echo refused";
        let read = [
            "run",
            "--rm",
            "--runtime",
            runtime,
            "-v",
            &format!("{folder}:/v:ro"),
            "debian",
            "sh",
            "-c",
            script,
        ];
        assert_eq!(server.docker(&read), "in\nrefused\n", "{runtime}");

        let bind = format!("type=bind,source={folder},target=/v");
        let run =
            ["run", "-d", "--name", "srv", "--runtime", runtime, "--mount", &bind, "-p", "127.0.0.1::80"];
        server.docker(&[&run[..], &["debian", "perl", "-e", perl]].concat());
        let address = server.docker(&["port", "srv", "80"]).trim().to_owned();
        let out = shared.path().join("out");
        server.place.wait_for("the server", || std::fs::read(&out).is_ok_and(|text| text == b"ready"));
        let mut client = std::net::TcpStream::connect(&address).unwrap();
        client.write_all(b"there and back\n").unwrap();
        let mut echo = String::new();
        client.read_to_string(&mut echo).unwrap();
        assert_eq!(echo, "there and back\n", "{runtime}");
        assert_eq!(server.docker(&["wait", "srv"]), "0\n");
        server.docker(&["rm", "srv"]);
    }
    let missing = "type=bind,src=/no/such/folder,dst=/x";
    refused(&server.try_to(&["run", "--mount", missing, "debian"]), 125, "/no/such/folder");
}

#[test]
fn workloads_outlive_a_server_that_is_killed() {
    let Some(mut server) = Server::with_client() else { return };
    server.docker(&["run", "-d", "--name", "one", "debian", "sh", "-c", "echo up; sleep 1000"]);
    server.kill();
    refused(&server.try_to(&["ps"]), 1, "Is the docker daemon running?");
    server.serve_again();
    assert_eq!(server.docker(&["ps", "--format", "{{.Names}} {{.State}}"]), "one running\n");
    assert_eq!(server.docker(&["exec", "one", "echo", "here"]), "here\n");
    server.docker(&["rm", "-f", "one"]);
}

#[test]
fn nonsense_gets_dockers_status_and_one_line() {
    let Some(server) = Server::start() else { return };
    let long = "x".repeat(5 << 20);
    for (method, path, body, status) in [
        ("GET", "/_ping", "", 200),
        ("GET", "/v1.24/version", "", 200),
        ("GET", "/v1.99/version", "", 400),
        ("GET", "/v1.2x/version", "", 400),
        ("GET", "/nothing", "", 404),
        ("GET", "/swarm", "", 503),
        ("GET", "/volumes/none", "", 404),
        ("POST", "/commit", "", 400),
        ("POST", "/commit?container=none", "", 404),
        ("GET", "/containers/none/archive?path=/", "", 404),
        ("PUT", "/containers/none/archive?path=/", "", 404),
        ("GET", "/containers/none/changes", "", 404),
        ("GET", "/containers/none/export", "", 404),
        ("GET", "/containers/none/json", "", 404),
        ("GET", "/containers/json?filters=%7B", "", 400),
        ("GET", "/containers/json?filters=%7B%22fly%22:[%22x%22]%7D", "", 400),
        ("GET", "/containers/json?limit=x", "", 400),
        ("POST", "/containers/create", "", 400),
        ("POST", "/containers/create", "{", 400),
        ("POST", "/containers/create", "[]", 400),
        ("POST", "/containers/create", "{\"Image\":\"none\"}", 404),
        ("POST", "/containers/create", "{\"Image\":\"Not A Name\"}", 404),
        ("POST", "/containers/create?name=..", "{\"Image\":\"debian\",\"Cmd\":[\"true\"]}", 400),
        ("POST", "/containers/create", "{\"Image\":\"debian\",\"HostConfig\":{\"Memory\":\"x\"}}", 400),
        ("POST", "/containers/create", &long, 413),
        ("POST", "/containers/none/start", "", 404),
        ("POST", "/containers/none/wait?condition=never", "", 400),
        ("POST", "/exec/none/start", "{}", 404),
        ("GET", "/images/none/json", "", 404),
        ("GET", "/images/a/b/c/fly", "", 501),
        ("DELETE", "/images/none", "", 404),
        ("POST", "/images/create?fromImage=Not%20A%20Name", "", 400),
        ("POST", "/build?remote=http://x", "", 501),
        ("DELETE", "/containers/create", "", 405),
        ("PATCH", "/version", "", 405),
    ] {
        let (found, answer) = server.ask(method, path, body);
        let shown = &body[..body.len().min(80)];
        assert_eq!(found, status, "{method} {path} {shown}: {answer}");
        if status >= 400 && status != 405 {
            let message = serde_json::from_str::<Value>(&answer).unwrap()["message"].clone();
            assert!(
                message.as_str().is_some_and(|text| !text.is_empty() && !text.contains('\n')),
                "{answer}"
            );
        }
    }
    for broken in ["GET\r\n\r\n", "\0\0\0\0\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
        let (status, _) = server.raw(broken);
        assert!(matches!(status, 0 | 400 | 404 | 505), "{broken:?}: {status}");
    }
    // A body that ends early, and a client that goes in the middle.
    let early = "POST /images/load HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc";
    let mut stream = UnixStream::connect(server.socket()).unwrap();
    stream.write_all(early.as_bytes()).unwrap();
    drop(stream);
    assert_eq!(server.ask("GET", "/_ping", "").1, "OK");
    let left = |name: &str| name.starts_with(".upload-") || name.starts_with(".context-");
    server.place.wait_for("the end of what a client left", || {
        let names = std::fs::read_dir(server.place.dir.path().join("store")).unwrap();
        !names.flatten().any(|entry| left(&entry.file_name().to_string_lossy()))
    });
}

#[test]
fn who_sends_more_than_is_read_hears_why() {
    let Some(server) = Server::start() else { return };
    let long = "x".repeat(8 << 20);
    for _ in 0..20 {
        for (method, path, status) in [
            ("POST", "/containers/create", 413),
            ("PUT", "/containers/none/archive?path=/", 404),
            ("POST", "/v1.99/images/load", 400),
            ("DELETE", "/containers/create", 405),
        ] {
            assert_eq!(server.ask(method, path, &long).0, status, "{method} {path}");
        }
    }
}

#[test]
fn what_ends_while_it_is_removed_by_force_is_removed() {
    let Some(server) = Server::start() else { return };
    for runtime in RUNTIMES {
        for round in 0..if runtime == "strata" { 40 } else { 8 } {
            let script = format!("sleep 0.{:02}", round % 40);
            let body = format!(
                r#"{{"Image":"debian","Cmd":["sh","-c","{script}"],"HostConfig":{{"NetworkMode":"none","Runtime":"{runtime}","AutoRemove":{}}}}}"#,
                round % 2 == 1
            );
            let (status, said) = server.ask("POST", "/containers/create?name=brief", &body);
            assert_eq!(status, 201, "{said}");
            assert_eq!(server.ask("POST", "/containers/brief/start", "").0, 204);
            std::thread::sleep(std::time::Duration::from_millis(round * 13 % 400));
            let (status, said) = server.ask("DELETE", "/containers/brief?force=1", "");
            // One that goes by itself may be gone.
            assert!(status == 204 || (status == 404 && round % 2 == 1), "{runtime} {round}: {status} {said}");
        }
    }
    assert_eq!(server.ask("GET", "/containers/json?all=1", "").1.trim(), "[]");
}

#[test]
fn two_servers_cannot_have_one_socket_and_can_have_one_store() {
    let Some(server) = Server::start() else { return };
    let taken = server.place.try_to(&["serve", "--listen", &format!("unix://{}", server.socket().display())]);
    taken.expect_failure(125, &["another server answers there"]);
    let file = server.place.dir.path().join("file");
    std::fs::write(&file, "mine").unwrap();
    let refused = server.place.try_to(&["serve", "--listen", &format!("unix://{}", file.display())]);
    refused.expect_failure(125, &["no socket"]);
    assert_eq!(std::fs::read(&file).unwrap(), b"mine");
    assert_eq!(server.ask("GET", "/_ping", "").1, "OK");
}

#[test]
fn what_is_stopped_can_be_started_at_once_again_and_again() {
    let Some(server) = Server::start() else { return };
    let body = r#"{"Image":"debian","Cmd":["sleep","1000"],"HostConfig":{"NetworkMode":"none"}}"#;
    let (status, made) = server.ask("POST", "/containers/create?name=again", body);
    assert_eq!(status, 201, "{made}");
    for round in 0..50 {
        let (status, said) = server.ask("POST", "/containers/again/start", "");
        assert_eq!(status, 204, "round {round}: {said}");
        let (status, said) = server.ask("POST", "/containers/again/stop?t=0", "");
        assert_eq!(status, 204, "round {round}: {said}");
    }
}

#[test]
fn dockers_client_removes_and_prunes_as_it_does_elsewhere() {
    let Some(server) = Server::with_client() else { return };
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("Dockerfile"), "FROM debian\nLABEL mine=yes\n").unwrap();
    let folder = context.path().to_str().unwrap();
    server.docker(&["build", "-t", "mine:1", "-t", "mine:2", folder]);
    let id = server.docker(&["images", "-q", "mine:1"]).trim().to_owned();
    let refused = |arguments: &[&str], words: &str| refused(&server.try_to(arguments), 1, words);
    refused(&["rmi", &id], "must be forced) - image is referenced in multiple repositories");
    assert_eq!(server.docker(&["rmi", "mine:2"]), "Untagged: mine:2\n");
    server.docker(&["create", "--name", "user", "mine:1", "sleep", "1000"]);
    refused(&["rmi", "mine:1"], "unable to remove repository reference \"mine:1\" (must force) - container");
    refused(&["rmi", &id], "must be forced) - image is being used by stopped container");
    server.docker(&["start", "user"]);
    refused(&["rmi", "-f", &id], "cannot be forced) - image is being used by running container");
    assert_eq!(server.docker(&["rmi", "-f", "mine:1"]), "Untagged: mine:1\n");
    server.docker(&["rm", "-f", "user"]);
    server.docker(&["build", "-t", "mine:1", folder]);
    let gone = server.docker(&["image", "prune", "-a", "-f", "--filter", "label=mine=yes"]);
    assert!(!gone.contains("debian"), "{gone}");
    assert_eq!(server.docker(&["images", "-q", "mine:1"]), "", "{gone}");
    refused(&["rmi", "mine:1"], "No such image: mine:1");
}
