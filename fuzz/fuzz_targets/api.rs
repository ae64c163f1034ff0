//! What clients of the Docker Engine API send: queries, filters and JSON bodies, through the whole router down to where something
//! would be done.
#![no_main]

use std::process::Command;
use std::sync::{Arc, OnceLock};

use api::{
    AfterSnapshot, Backend, BuildOptions, CommandOptions, CommitOptions, Creation, Limits, Machines, Process,
    Refusal, RefusalKind, SavedWorkload, Traffic, Usage,
};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use image::Store;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tower::ServiceExt;
use workload::networks::{Endpoint, LeaseInfo, Network, NewNetwork};
use workload::{Folder, Isolation, LogLimits, Restart, Running, Wanted, Workloads};

/// Bytes of an answer: what is said of nonsense is short.
const MAX_ANSWER: usize = 1 << 20;

/// Requests that say more than a name. `web` is a workload.
const REQUESTS: [(&str, &str); 22] = [
    ("POST", "/containers/create"),
    ("POST", "/containers/web/update"),
    ("POST", "/containers/web/exec"),
    ("POST", "/exec/none/start"),
    ("POST", "/containers/web/rename"),
    ("POST", "/containers/web/kill"),
    ("POST", "/containers/web/resize"),
    ("GET", "/containers/web/top"),
    ("GET", "/containers/json"),
    ("POST", "/containers/prune"),
    ("POST", "/networks/create"),
    ("POST", "/networks/none/connect"),
    ("POST", "/networks/none/disconnect"),
    ("GET", "/networks"),
    ("POST", "/volumes/create"),
    ("GET", "/volumes"),
    ("GET", "/images/json"),
    ("POST", "/commit"),
    ("POST", "/build"),
    ("POST", "/strata/v1/workloads/web/fork"),
    ("POST", "/strata/v1/snapshots"),
    ("POST", "/strata/v1/snapshots/none/restore"),
];

/// A program that does nothing of what it is asked.
struct Idle {
    store: Store,
    workloads: Workloads,
}

fn no<T>() -> Result<T, Refusal> {
    Err(Refusal { kind: RefusalKind::Conflict, message: "nothing is done here".to_owned() })
}

impl Machines for Idle {
    fn check(&self) -> Result<Value, Refusal> {
        no()
    }
    fn templates(&self) -> Result<Value, Refusal> {
        no()
    }
    fn remove_template(&self, _: &str) -> Result<(), Refusal> {
        no()
    }
    fn snapshots(&self) -> Result<Vec<SavedWorkload>, Refusal> {
        no()
    }
    fn snapshot(&self, _: &Folder, _: &str, _: AfterSnapshot) -> Result<(), Refusal> {
        no()
    }
    fn restore(&self, _: &str, _: Option<&str>) -> Result<String, Refusal> {
        no()
    }
    fn remove_snapshot(&self, _: &str) -> Result<(), Refusal> {
        no()
    }
    fn fork(&self, _: &Folder, _: u32) -> Result<Value, Refusal> {
        no()
    }
    fn traffic(&self, _: &Folder) -> Option<Traffic> {
        None
    }
}

impl Backend for Idle {
    fn store(&self) -> &Store {
        &self.store
    }
    fn workloads(&self) -> &Workloads {
        &self.workloads
    }
    fn create(&self, _: Option<String>, _: Creation) -> Result<Folder, Refusal> {
        no()
    }
    fn watch(&self, _: &Folder) -> Result<(), Refusal> {
        no()
    }
    fn remove(&self, _: &Folder, _: Running) -> Result<(), Refusal> {
        no()
    }
    fn command(&self, _: &Folder, _: &CommandOptions) -> Result<Command, Refusal> {
        no()
    }
    fn files(&self, _: &Folder, _: &archive::Request) -> Result<Command, Refusal> {
        no()
    }
    fn changes(&self, _: &Folder) -> Result<Command, Refusal> {
        no()
    }
    fn commit(&self, _: &Folder, _: &CommitOptions) -> Result<Command, Refusal> {
        no()
    }
    fn build(&self, _: &BuildOptions) -> Result<Command, Refusal> {
        no()
    }
    fn update(&self, _: &Folder, _: &Limits) -> Result<(), Refusal> {
        no()
    }
    fn make_network(&self, _: NewNetwork) -> Result<Network, Refusal> {
        no()
    }
    fn connected(&self, _: &Network) -> Result<Vec<LeaseInfo>, Refusal> {
        no()
    }
    fn remove_network(&self, _: &str) -> Result<(), Refusal> {
        no()
    }
    fn connect(&self, _: &Folder, _: Endpoint) -> Result<(), Refusal> {
        no()
    }
    fn disconnect(&self, _: &Folder, _: &str) -> Result<(), Refusal> {
        no()
    }
    fn written(&self, _: &Folder) -> Option<u64> {
        None
    }
    fn usage(&self, _: &Folder) -> Option<Usage> {
        None
    }
    fn processes(&self, _: &Folder) -> Option<Vec<Process>> {
        None
    }
}

struct Bench {
    runtime: Runtime,
    router: Router,
    workloads: Workloads,
    _folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = TempDir::new().expect("a folder");
        let store = Store::open(folder.path()).expect("a store");
        let workloads = Workloads::open(folder.path()).expect("workloads");
        let wanted = Wanted {
            isolation: Isolation::Container,
            image: "debian".to_owned(),
            command: vec!["true".to_owned()],
            remove: false,
            restart: Restart::No,
            log: LogLimits::default(),
            health: None,
            stop_signal: 15,
            tty: false,
            interactive: false,
            labels: [("a".to_owned(), "b".to_owned())].into(),
            publish: vec!["127.0.0.1:8080:80/tcp".to_owned()],
            networks: Vec::new(),
            mounts: Vec::new(),
            said: None,
            options: json!({}),
        };
        workloads.create(Some("web".to_owned()), wanted).expect("a workload");
        let router = api::docker::router(Arc::new(Idle { store, workloads: workloads.clone() }));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        Bench { runtime, router, workloads, _folder: folder }
    }

    fn ask(&self, method: &str, address: &str, body: &[u8]) -> Option<(StatusCode, Vec<u8>)> {
        let request =
            Request::builder().method(method).uri(address).header("content-type", "application/json");
        let request = request.body(Body::from(body.to_vec())).ok()?;
        self.runtime.block_on(async {
            let Ok(answer) = self.router.clone().oneshot(request).await;
            let status = answer.status();
            let said = to_bytes(answer.into_body(), MAX_ANSWER).await.expect("a short answer");
            Some((status, said.to_vec()))
        })
    }
}

fuzz_target!(|data: &[u8]| {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    let Some((choice, rest)) = data.split_first() else { return };
    let bench = BENCH.get_or_init(Bench::new);
    let (method, path) = REQUESTS[usize::from(*choice) % REQUESTS.len()];
    // The query ends where the line does.
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let (query, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let Ok(query) = std::str::from_utf8(query) else { return };
    let Some((status, said)) = bench.ask(method, &format!("{path}?{query}"), body) else { return };
    assert!(status != StatusCode::INTERNAL_SERVER_ERROR, "{}", String::from_utf8_lossy(&said));
    if status.is_client_error() || status.is_server_error() {
        let error: Value = serde_json::from_slice(&said).expect("docker's form of an error");
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
    match path {
        // What is made is removed: the next one is as new as this was.
        "/volumes/create" if status == StatusCode::CREATED => {
            let made: Value = serde_json::from_slice(&said).expect("a volume");
            let volumes = bench.workloads.volumes().expect("volumes");
            volumes.remove(made["Name"].as_str().expect("a name")).expect("it is removed");
        }
        "/containers/web/rename" if status.is_success() => {
            let all = bench.workloads.list().expect("workloads");
            bench.workloads.rename(&all[0], "web".to_owned()).expect("its old name");
        }
        _ => {}
    }
});
