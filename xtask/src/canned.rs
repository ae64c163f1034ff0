//! A server of the Docker API that has one answer ready and gives it to whoever lists containers: what a client waits for then is
//! the client's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use crate::Outcome;

/// What `GET /containers/json` says at the socket `at`.
pub fn list(at: &Path) -> Outcome<Vec<u8>> {
    let mut stream = UnixStream::connect(at)?;
    stream.write_all(b"GET /containers/json HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let head = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or("no answer in HTTP")?;
    Ok(answer.split_off(head + 4))
}

/// Says `list` at the socket `at` as long as this process lives.
pub fn serve(at: &Path, list: Vec<u8>) -> Outcome {
    let (listener, list) = (UnixListener::bind(at)?, Arc::new(list));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let list = Arc::clone(&list);
            std::thread::spawn(move || answer(&stream, &list));
        }
    });
    Ok(())
}

/// Until the client goes.
fn answer(stream: &UnixStream, list: &[u8]) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    while let Some(request) = lines.next().transpose()? {
        // Neither of the two requests has a body.
        while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
        let body = if request.contains("/_ping") { &b"OK"[..] } else { list };
        let head = format!(
            "HTTP/1.1 200 OK\r\nApi-Version: 1.44\r\nOSType: linux\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let mut out = stream;
        out.write_all(head.as_bytes())?;
        if !request.starts_with("HEAD") {
            out.write_all(body)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_once_is_said_again() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("canned.sock");
        serve(&at, b"[1,2]".to_vec()).unwrap();
        let mut stream = UnixStream::connect(&at).unwrap();
        stream
            .write_all(b"HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\nGET /v1.44/containers/json HTTP/1.1\r\n\r\n")
            .unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(
            said.contains("Content-Length: 2\r\n\r\nHTTP/1.1")
                && said.ends_with("Content-Length: 5\r\n\r\n[1,2]")
        );
    }
}
