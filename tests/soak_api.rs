//! Clients that make, use and remove workloads through the API for a while: nothing of that may be left, in the server or on
//! the host. `STRATA_SOAK_SECONDS` says for how long (`make soak-api`).

pub mod traces;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use self::traces::{Network, Traces};
use crate::docker::{RUNTIMES, Server};
use crate::support::PATIENCE;

const CLIENTS: usize = 4;
/// What the heap of a server may have grown by: what it keeps for later, not for ever more.
const MEMORY_KIB: u64 = 24 << 10;

/// The ids of all that was made.
type Made = Mutex<Vec<String>>;

struct Client<'a> {
    server: &'a Server,
    number: usize,
    made: &'a Made,
}

impl Client<'_> {
    fn ask(&self, expected: &[u16], method: &str, path: &str, body: &Value) -> String {
        let (status, answer) = self.server.ask(method, path, &body.to_string());
        assert!(expected.contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// The object in an answer, which may have come in chunks.
    fn object(&self, expected: &[u16], method: &str, path: &str, body: &Value) -> Value {
        let answer = self.ask(expected, method, path, body);
        let (from, to) = (answer.find('{').unwrap(), answer.rfind('}').unwrap());
        serde_json::from_str(&answer[from..=to]).unwrap()
    }

    /// One workload from its birth to its end, which comes in one of several ways.
    fn round(&self, round: usize) {
        // Machines take a second, containers a tenth.
        let runtime = RUNTIMES[usize::from((round + self.number) % 4 == 3)];
        let network = if round.is_multiple_of(2) { "none" } else { "bridge" };
        let name = format!("soak-{}-{round}", self.number);
        let script = "trap 'exit 0' TERM; echo up; while :; do sleep 0.1; done";
        let body = json!({
            "Image": "debian", "Cmd": ["sh", "-c", script],
            "HostConfig": { "Runtime": runtime, "NetworkMode": network },
        });
        let made = self.object(&[201], "POST", &format!("/containers/create?name={name}"), &body);
        self.made.lock().unwrap().push(made["Id"].as_str().unwrap().to_owned());
        let at = |verb: &str| format!("/containers/{name}/{verb}");
        self.ask(&[204], "POST", &at("start"), &Value::Null);
        let deadline = Instant::now() + PATIENCE;
        while !self.ask(&[200], "GET", &at("logs?stdout=1"), &Value::Null).contains("up\n") {
            assert!(Instant::now() < deadline, "{name} never came up");
            std::thread::sleep(Duration::from_millis(20));
        }
        let exec = self.object(
            &[201],
            "POST",
            &at("exec"),
            &json!({ "AttachStdout": true, "Cmd": ["echo", "said"] }),
        );
        let start = format!("/exec/{}/start", exec["Id"].as_str().unwrap());
        assert!(self.ask(&[200], "POST", &start, &json!({ "Detach": false })).contains("said\n"));
        self.ask(&[200], "GET", &at("stats?stream=0&one-shot=1"), &Value::Null);
        self.leave_in_the_middle(&name);
        match round % 3 {
            0 => drop(self.ask(&[204], "POST", &at("stop?t=60"), &Value::Null)),
            1 => drop(self.ask(&[204], "POST", &at("kill"), &Value::Null)),
            _ => {}
        }
        if round % 3 != 2 {
            self.ask(&[200], "POST", &at("wait"), &Value::Null);
        }
        self.ask(&[204], "DELETE", &format!("/containers/{name}?force=1"), &Value::Null);
    }

    /// Streams that their client wants to hear no more of.
    fn leave_in_the_middle(&self, name: &str) {
        let upgrade = "Upgrade: tcp\r\nConnection: Upgrade\r\n";
        for (method, path, head) in [
            ("POST", format!("/containers/{name}/attach?stream=1&stdout=1&logs=1"), upgrade),
            ("GET", format!("/containers/{name}/logs?stdout=1&follow=1"), ""),
            ("GET", format!("/containers/{name}/stats"), ""),
            ("GET", "/events".to_owned(), ""),
        ] {
            let mut stream = UnixStream::connect(self.server.socket()).unwrap();
            stream
                .write_all(format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n").as_bytes())
                .unwrap();
        }
    }
}

/// Beside the clients: workloads on a network with a name, which have addresses and rules.
fn neighbour(server: &Server, network: &Network<'_>, round: usize) {
    let isolation = ["container", "container", "vm"][round % 3];
    let run = ["run", "--isolation", isolation, "--network", &network.name, "debian", "--", "true"];
    server.place.strata(&run);
}

#[test]
fn nothing_is_left_of_workloads_that_clients_make_use_and_remove() {
    let Some(server) = Server::start() else { return };
    let seconds = std::env::var("STRATA_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let network = Network::make(&server);
    let made = Made::default();
    let client = |number| Client { server: &server, number, made: &made };
    // What is made once, such as templates and threads, is there when counting begins.
    (0..4).for_each(|round| client(0).round(round));
    network.iter().for_each(|network| (0..3).for_each(|round| neighbour(&server, network, round)));
    let before = Traces::settled(&server, network.as_ref(), &made.lock().unwrap());
    let end = Instant::now() + Duration::from_secs(seconds);
    let rounds = Mutex::new(0);
    let go_on = |act: &dyn Fn(usize)| {
        let mut round = 4;
        while Instant::now() < end {
            act(round);
            round += 1;
            *rounds.lock().unwrap() += 1;
        }
    };
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (go_on, client) = (&go_on, client(number));
            scope.spawn(move || go_on(&|round| client.round(round)));
        }
        if let Some(network) = &network {
            go_on(&|round| neighbour(&server, network, round));
        }
    });
    let after = Traces::settled(&server, network.as_ref(), &made.lock().unwrap());
    println!("{} workloads in {seconds} s\nbefore {before:?}\nafter  {after:?}", rounds.lock().unwrap());
    assert!(after.memory_kib <= before.memory_kib + MEMORY_KIB, "{before:?} {after:?}");
    // A connection that was just left may still be there; one for each workload would be more.
    assert!(after.files <= before.files + 2 * CLIENTS, "{before:?} {after:?}");
    assert_eq!(after.of_host(), before.of_host());
    if let Some(network) = network {
        network.remove();
    }
}
