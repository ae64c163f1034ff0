//! What a program says, line by line.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};

use crate::Outcome;

/// The lines of the child's standard output, until it is closed.
pub fn of(child: &mut Child) -> Outcome<Receiver<String>> {
    let output = child.stdout.take().ok_or("no standard output")?;
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}
