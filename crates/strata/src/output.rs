//! Tables and JSON on standard output.

use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::failure::{Outcome, While};

/// Rows of text under a header.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with this header.
    pub fn new(header: &[&str]) -> Self {
        Self { rows: vec![header.iter().map(|h| (*h).to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Prints it: columns aligned; the header in bold where a terminal shows it and colours are welcome.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn print(&self) -> Outcome<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for (number, row) in self.rows.iter().enumerate() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            let line = line.trim_end();
            text.push_str(&if number == 0 && styled() {
                format!("\x1b[1m{line}\x1b[0m")
            } else {
                line.to_owned()
            });
            text.push('\n');
        }
        write(&text)
    }
}

/// Prints a value as JSON.
///
/// # Errors
/// Standard output cannot be written.
pub fn json(value: &impl Serialize) -> Outcome<()> {
    let text = serde_json::to_string_pretty(value).while_trying(|| "write json".to_owned())?;
    write(&(text + "\n"))
}

/// Prints text to standard output. A reader that left early (`| head`) is not an error.
///
/// # Errors
/// Standard output cannot be written.
pub fn write(text: &str) -> Outcome<()> {
    tell(&mut io::stdout().lock(), "output", text).map(drop)
}

/// Writes text to the standard stream `name`, and says whether anybody still reads it: who goes on without end must know.
///
/// # Errors
/// It cannot be written.
pub fn tell(stream: &mut dyn Write, name: &str, text: &str) -> Outcome<bool> {
    match stream.write_all(text.as_bytes()).and_then(|()| stream.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        result => result.map(|()| true).while_trying(|| format!("write to standard {name}")),
    }
}

/// Whether nobody reads `stream` any more: the other end of a pipe is closed. To be asked where nothing is written for long.
pub fn is_left(stream: impl AsFd) -> bool {
    let mut wait = [PollFd::new(&stream, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut wait, Some(&now)).is_ok() && wait[0].revents().contains(PollFlags::ERR)
}

/// Whether standard output shows styles: a terminal, and nobody said NO_COLOR.
pub fn styled() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Bytes for people: `512 B`, `4.0 KiB`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = "B";
    for next in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// Text from an image or a guest, safe to show: control characters become visible.
pub fn visible(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(512 << 20), "512.0 MiB");
    }

    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(visible("a\x1b[31m"), "a\\u{1b}[31m");
    }
}
