//! What a workload wrote, in docker's json-file format: a line of JSON for each line of output, `log`, `stream`, `time`.
//!
//! A file that has grown past its limit becomes `.1`, that one `.2`, and so on; the oldest goes.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::marker::PhantomData;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::description::LogLimits;
use crate::error::{Error, Result};
use crate::folder::Folder;
use crate::state::now_ms;

/// A longer line is cut into several entries, as docker does.
const MAX_LINE_BYTES: usize = 16 << 10;

/// How soon new entries are seen.
const LOOK: Duration = Duration::from_millis(50);

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// With its end of line, where it has one. Bytes that are no UTF-8 are replaced.
    pub log: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// RFC 3339, UTC.
    pub time: String,
}

/// Writes a log.
#[derive(Debug)]
pub struct Writer {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    size: u64,
}

impl Writer {
    /// Goes on with the log at `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn open(path: &Path, limits: LogLimits) -> Result<Writer> {
        let open = OpenOptions::new().create(true).append(true).open(path);
        let file = open.map_err(Error::file("open", path))?;
        let size = file.metadata().map_err(Error::file("stat", path))?.len();
        Ok(Writer { path: path.to_path_buf(), limits, file, size })
    }

    /// Adds one entry.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn add(&mut self, stream: &str, bytes: &[u8]) -> Result<()> {
        if self.limits.files == 0 {
            return Ok(());
        }
        let log = String::from_utf8_lossy(bytes).into_owned();
        let entry = Entry { log, stream: stream.to_owned(), time: rfc3339(now_ms()) };
        let mut line =
            serde_json::to_vec(&entry).map_err(|source| Error::Json { path: self.path.clone(), source })?;
        line.push(b'\n');
        if self.size > 0 && self.size + line.len() as u64 > self.limits.max_bytes {
            self.rotate()?;
        }
        self.file.write_all(&line).map_err(Error::file("write", &self.path))?;
        self.size += line.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> Result<()> {
        for number in (1..self.limits.files).rev() {
            let from = numbered(&self.path, number - 1);
            match fs::rename(&from, numbered(&self.path, number)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(Error::file("rename", from)(e)),
                _ => {}
            }
        }
        if self.limits.files <= 1 {
            self.file.set_len(0).map_err(Error::file("cut", &self.path))?;
        }
        *self = Writer::open(&self.path, self.limits)?;
        Ok(())
    }

    /// Makes what was written durable.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::file("write", &self.path))
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines(Vec<u8>);

impl Lines {
    /// Takes bytes and hands out the lines that are complete, or too long to wait for their end.
    ///
    /// # Errors
    /// Those of `line`.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        while !bytes.is_empty() {
            let room = MAX_LINE_BYTES - self.0.len();
            let end = bytes.iter().take(room).position(|byte| *byte == b'\n');
            let take = end.map_or(room.min(bytes.len()), |at| at + 1);
            self.0.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if end.is_some() || self.0.len() >= MAX_LINE_BYTES {
                line(&self.0)?;
                self.0.clear();
            }
        }
        Ok(())
    }

    /// Hands out what is left.
    ///
    /// # Errors
    /// Those of `line`.
    pub fn finish(&mut self, line: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { line(&std::mem::take(&mut self.0)) }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_path_buf();
    }
    let mut name = path.as_os_str().to_os_string();
    name.push(format!(".{number}"));
    name.into()
}

/// Reads a file of lines of JSON from its oldest entry, and what is added meanwhile.
#[derive(Debug)]
pub struct Reader<T = Entry> {
    path: PathBuf,
    /// Files still to be read, the next one last; the log itself first of all.
    files: Vec<File>,
    current: Option<BufReader<File>>,
    inode: u64,
    partial: Vec<u8>,
    entries: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Reader<T> {
    /// Opens the log at `path` and its older files. One that does not exist is empty.
    ///
    /// # Errors
    /// A file cannot be opened.
    pub fn open(path: &Path) -> Result<Reader<T>> {
        let mut files = Vec::new();
        for number in 0.. {
            let file = numbered(path, number);
            match File::open(&file) {
                Ok(open) => files.push(open),
                Err(e) if e.kind() == io::ErrorKind::NotFound => break,
                Err(e) => return Err(Error::file("open", file)(e)),
            }
        }
        let (path, partial) = (path.to_path_buf(), Vec::new());
        Ok(Reader { path, files, current: None, inode: 0, partial, entries: PhantomData })
    }

    /// The next entry; nothing when there is none yet.
    ///
    /// # Errors
    /// A file cannot be read, or holds what is no entry.
    pub fn next_entry(&mut self) -> Result<Option<T>> {
        loop {
            if let Some(current) = &mut self.current {
                current.read_until(b'\n', &mut self.partial).map_err(Error::file("read", &self.path))?;
                if self.partial.ends_with(b"\n") {
                    let line = std::mem::take(&mut self.partial);
                    let entry = serde_json::from_slice(&line);
                    return entry.map(Some).map_err(|source| Error::Json { path: self.path.clone(), source });
                }
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// Goes on with the next file, if there is one.
    fn advance(&mut self) -> Result<bool> {
        let next = match self.files.pop() {
            Some(file) => file,
            // The log was set aside and begun anew.
            None => match File::open(&self.path) {
                Ok(file) => file,
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(e) => return Err(Error::file("open", &self.path)(e)),
            },
        };
        let inode = next.metadata().map_err(Error::file("stat", &self.path))?.ino();
        if inode == self.inode {
            return Ok(false);
        }
        // What a crash left of a last line is no entry.
        self.partial.clear();
        self.inode = inode;
        self.current = Some(BufReader::new(next));
        Ok(true)
    }
}

/// Which part of a log is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// The last so many of what is chosen; nothing for all.
    pub tail: Option<usize>,
    /// What is added until nobody watches the workload any more, too.
    pub follow: bool,
}

/// Hands what `choose` makes of the entries of a workload's log to `show`, which says whether anybody reads on. While there is
/// nothing new, `is_heard` is asked that.
///
/// # Errors
/// A file cannot be read, or holds what is no entry.
pub fn read<T>(
    folder: &Folder,
    part: Part,
    mut choose: impl FnMut(Entry) -> Option<T>,
    mut show: impl FnMut(T) -> bool,
    is_heard: impl Fn() -> bool,
) -> Result<()> {
    let mut reader: Reader = Reader::open(&folder.log())?;
    if let Some(tail) = part.tail {
        let mut last = VecDeque::new();
        while let Some(entry) = reader.next_entry()? {
            last.extend(choose(entry));
            if last.len() > tail {
                last.pop_front();
            }
        }
        if !last.into_iter().all(&mut show) {
            return Ok(());
        }
    }
    loop {
        // First: what it wrote before its end is there then.
        let watched = folder.is_watched().unwrap_or(false);
        while let Some(entry) = reader.next_entry()? {
            if let Some(chosen) = choose(entry)
                && !show(chosen)
            {
                return Ok(());
            }
        }
        if !part.follow || !watched || !is_heard() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
}

/// A time in UTC with milliseconds, as RFC 3339 has it; the end of the year 9999 for any later one.
pub fn rfc3339(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    format!("{:.3}", time.unwrap_or(Timestamp::MAX))
}

/// Seconds since 1970 of a time as RFC 3339 has it; 0 for any other text.
pub fn seconds(text: &str) -> i64 {
    text.parse::<Timestamp>().map_or(0, Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_kept_and_old_files_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.json");
        let limits = LogLimits { max_bytes: 400, files: 3 };
        let mut writer = Writer::open(&path, limits).unwrap();
        let mut reader: Reader = Reader::open(&path).unwrap();
        let mut seen = Vec::new();
        for number in 0..40 {
            writer.add("stdout", format!("line {number}\n").as_bytes()).unwrap();
            while let Some(entry) = reader.next_entry().unwrap() {
                seen.push(entry.log);
            }
        }
        let all: Vec<String> = (0..40).map(|number| format!("line {number}\n")).collect();
        assert_eq!(seen, all, "who follows misses nothing");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let mut late: Reader = Reader::open(&path).unwrap();
        let mut kept = Vec::new();
        while let Some(entry) = late.next_entry().unwrap() {
            kept.push(entry.log);
        }
        assert!(kept.len() >= 8 && all.ends_with(&kept), "{kept:?}");
    }

    #[test]
    fn long_lines_and_bytes_that_are_no_text_are_kept() {
        let mut lines = Lines::default();
        let mut found = Vec::new();
        let mut keep = |line: &[u8]| {
            found.push(line.to_vec());
            Ok(())
        };
        lines.push(b"a", &mut keep).unwrap();
        lines.push(b"b\nc\n\n", &mut keep).unwrap();
        lines.push(&[b'x'; MAX_LINE_BYTES + 1], &mut keep).unwrap();
        lines.finish(&mut keep).unwrap();
        lines.finish(&mut keep).unwrap();
        assert_eq!(found[..3], [b"ab\n".to_vec(), b"c\n".to_vec(), b"\n".to_vec()]);
        assert_eq!((found[3].len(), found[4].len(), found.len()), (MAX_LINE_BYTES, 1, 5));
        assert_eq!(rfc3339(1_795_243_226_007), "2026-11-21T06:40:26.007Z");
        assert_eq!((seconds("2026-11-21T06:40:26.007Z"), seconds("yesterday")), (1_795_243_226, 0));
    }
}
