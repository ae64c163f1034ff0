//! A registry that does what a test says: honest where the test says nothing, over plain HTTP on this host.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use image::Digest;
use serde_json::{Value, json};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// What a client asked.
#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Request {
    /// A header, empty if it is not there.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where a range begins.
    pub fn range(&self) -> Option<usize> {
        self.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What it gets.
pub enum Reply {
    /// A whole answer.
    Answer { status: u16, headers: Vec<(String, String)>, body: Vec<u8> },
    /// Bytes as they are; then the connection is closed.
    Raw(Vec<u8>),
    /// Bytes as they are; then nothing more, until the client leaves or the server ends.
    Stall(Vec<u8>),
    /// Whatever the function does with the connection.
    Stream(Act),
}

impl Reply {
    pub fn status(status: u16) -> Reply {
        Reply::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn ok(body: impl Into<Vec<u8>>) -> Reply {
        Reply::Answer { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub fn with(self, name: &str, value: impl Into<String>) -> Reply {
        match self {
            Reply::Answer { status, mut headers, body } => {
                headers.push((name.to_string(), value.into()));
                Reply::Answer { status, headers, body }
            }
            other => other,
        }
    }

    pub fn redirect(to: impl Into<String>) -> Reply {
        Reply::status(307).with("Location", to)
    }
}

/// What a registry has.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    /// Tag or digest to bytes and media type.
    pub manifests: HashMap<String, (Vec<u8>, String)>,
    pub blobs: HashMap<String, Vec<u8>>,
}

/// The descriptor of some bytes.
pub fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

/// A config for layers of these bytes, which are taken for their own archives.
pub fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    json!({ "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": ids } })
        .to_string()
        .into_bytes()
}

impl Contents {
    /// One image under the tag `latest`, its manifest changed by `change`.
    pub fn image(layers: &[Vec<u8>], change: impl FnOnce(&mut Value)) -> Contents {
        let mut contents = Contents::default();
        let config = config(layers);
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &config),
            "layers": layers.iter().map(|layer| descriptor(LAYER, layer)).collect::<Vec<_>>(),
        });
        change(&mut manifest);
        for blob in layers.iter().chain([&config]) {
            contents.blobs.insert(Digest::of(blob).to_string(), blob.clone());
        }
        let media_type = manifest["mediaType"].as_str().unwrap_or(MANIFEST).to_string();
        contents.add_manifest("latest", &manifest, &media_type);
        contents
    }

    /// Names a document by a tag and by its digest.
    pub fn add_manifest(&mut self, tag: &str, manifest: &Value, media_type: &str) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let found = descriptor(media_type, &bytes);
        for name in [tag.to_string(), Digest::of(&bytes).to_string()] {
            self.manifests.insert(name, (bytes.clone(), media_type.to_string()));
        }
        found
    }

    /// What an honest registry answers to a GET.
    pub fn answer(&self, request: &Request) -> Reply {
        if request.path == "/v2/" {
            return Reply::ok("{}");
        }
        let name = request.path.rsplit('/').next().unwrap_or_default();
        if request.path.contains("/manifests/") {
            return match self.manifests.get(name) {
                Some((bytes, media_type)) => Reply::ok(bytes.clone()).with("Content-Type", media_type),
                None => Reply::status(404),
            };
        }
        let Some(blob) = self.blobs.get(name) else { return Reply::status(404) };
        match request.range() {
            Some(first) => {
                let range = format!("bytes {first}-{}/{}", blob.len() - 1, blob.len());
                let body = blob[first..].to_vec();
                Reply::Answer { status: 206, headers: Vec::new(), body }.with("Content-Range", range)
            }
            None => Reply::ok(blob.clone()),
        }
    }
}

type Script = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// What a test does with a connection in place of an answer.
pub type Act = Box<dyn FnOnce(&mut TcpStream) + Send>;
type Early = dyn Fn(&Request) -> Option<Act> + Send + Sync;

/// A registry that runs.
pub struct FakeRegistry {
    pub domain: String,
    asked: Arc<Mutex<Vec<Request>>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl FakeRegistry {
    /// Serves `contents`, but first what `script` says.
    pub fn start(
        contents: Contents,
        script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        Self::start_early(contents, |_| None, script)
    }

    /// The same, but what `early` says of a request it does before the request's body is read. Of the little that the kernel
    /// takes meanwhile the body is more.
    pub fn start_early(
        contents: Contents,
        early: impl Fn(&Request) -> Option<Act> + Send + Sync + 'static,
        script: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let domain = listener.local_addr().unwrap().to_string();
        let (asked, over) = (Arc::<Mutex<Vec<Request>>>::default(), Arc::new(AtomicBool::new(false)));
        let (early, script): (Arc<Early>, Arc<Script>) = (Arc::new(early), Arc::new(script));
        let (heard, ended, contents) = (asked.clone(), over.clone(), Arc::new(contents));
        let thread = std::thread::spawn(move || {
            let mut open = Vec::new();
            for stream in listener.incoming() {
                if ended.load(Ordering::Relaxed) {
                    break;
                }
                let stream = stream.unwrap();
                open.push(stream.try_clone().unwrap());
                let (heard, contents) = (heard.clone(), contents.clone());
                let (early, script) = (early.clone(), script.clone());
                std::thread::spawn(move || serve(stream, &heard, &*early, &*script, &contents));
            }
            // Whoever stalls is let go.
            open.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        });
        FakeRegistry { domain, asked, over, thread: Some(thread) }
    }

    /// All requests so far.
    pub fn asked(&self) -> Vec<Request> {
        self.asked.lock().unwrap().clone()
    }

    /// How many requests for paths with `part` in them there were.
    pub fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|request| request.path.contains(part)).count()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes whoever waits for the next connection.
        drop(TcpStream::connect(&self.domain));
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the registry of the test failed");
    }
}

fn serve(
    mut stream: TcpStream,
    asked: &Mutex<Vec<Request>>,
    early: &Early,
    script: &Script,
    contents: &Contents,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let Some(mut request) = read_head(&mut reader) else {
        // The list of open connections holds it as well.
        let _ = stream.shutdown(Shutdown::Both);
        return;
    };
    if let Some(act) = early(&request) {
        asked.lock().unwrap().push(request);
        act(&mut stream);
        let _ = stream.shutdown(Shutdown::Both);
        return;
    }
    let length = request.header("content-length").parse().unwrap_or(0);
    request.body = vec![0; length];
    if reader.read_exact(&mut request.body).is_err() {
        let _ = stream.shutdown(Shutdown::Both);
        return;
    }
    asked.lock().unwrap().push(request.clone());
    let reply = script(&request).unwrap_or_else(|| contents.answer(&request));
    // Clients of liars leave early: that is no failure of the test.
    let _ = match reply {
        Reply::Answer { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
            if !headers
                .iter()
                .any(|(name, _)| matches!(name.as_str(), "Content-Length" | "Transfer-Encoding"))
            {
                head += &format!("Content-Length: {}\r\n", body.len());
            }
            headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
            let head_only = request.method == "HEAD";
            let body = if head_only { &[][..] } else { &body };
            stream.write_all((head + "\r\n").as_bytes()).and_then(|()| stream.write_all(body))
        }
        Reply::Raw(bytes) => stream.write_all(&bytes),
        Reply::Stall(bytes) => {
            let written = stream.write_all(&bytes);
            let _ = stream.read(&mut [0]);
            written
        }
        Reply::Stream(act) => {
            act(&mut stream);
            Ok(())
        }
    };
    // What was not read would turn the end into a reset, and take the answer with it.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// A request without its body. Nothing when what comes is not HTTP: a client that tries TLS first.
fn read_head(reader: &mut BufReader<TcpStream>) -> Option<Request> {
    if reader.fill_buf().ok()?.first()? == &0x16 {
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace().map(str::to_string);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_lowercase(), value.trim().to_string()),
            None => break,
        };
    }
    Some(Request { method, path, headers, body: Vec::new() })
}
