//! `strata serve` on a store of its own.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use crate::detached::Place;

/// A server that runs.
pub struct Server {
    process: Child,
    pub place: Place,
    /// Where it listens, as it says.
    pub addresses: Vec<String>,
}

impl Server {
    /// One with these flags beside a socket in its folder. `listeners` is how many there are then.
    pub fn start(flags: &[&str], listeners: usize) -> Option<Server> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: docker's containers are tested as root");
            return None;
        }
        let place = Place::new()?;
        let socket = format!("unix://{}", place.dir.path().join("d.sock").display());
        let mut command = place.command(&["serve", "--listen", &socket]);
        let mut process = command.args(flags).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap());
        let mut addresses = Vec::new();
        while addresses.len() < listeners {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            let (_, rest) = line.split_once(" is at ").unwrap_or_else(|| panic!("{line:?}"));
            addresses.push(rest.split(';').next().unwrap().trim().to_owned());
        }
        // What it says later is read, so that it never waits.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Some(Server { process, place, addresses })
    }

    /// The address that begins so.
    pub fn address(&self, scheme: &str) -> &str {
        let found = self.addresses.iter().find(|address| address.starts_with(scheme));
        found.unwrap_or_else(|| panic!("no {scheme} in {:?}", self.addresses))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An answer.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

/// Sends a request whose connection is its own; `head` is lines that end with `\r\n`.
pub fn ask(mut stream: impl Read + Write, method: &str, path: &str, head: &str, body: &str) -> Answer {
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\n{head}Connection: close\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|text| text.parse().ok());
    Answer {
        status: status.unwrap_or_else(|| panic!("{answer}")),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}
