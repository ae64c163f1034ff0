//! Standard streams, a lot of them.

use crate::support::{feed, noise, run};

const BYTES: usize = 100_000_000;

#[test]
fn a_hundred_megabytes_go_in_and_come_out_unchanged() {
    let Some(command) = run(&["-i", "debian", "--", "cat"]) else { return };
    let input = noise(BYTES);
    let (output, status) = feed(command, input.clone());
    assert_eq!(status.code(), Some(0));
    assert!(output == input, "{} of {} bytes came back, or other ones", output.len(), input.len());
}

#[test]
fn a_reader_that_leaves_ends_the_command() {
    let Some(mut command) = run(&["debian", "--", "sh", "-c", "yes; echo $? >&2"]) else { return };
    let mut child =
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut line = [0; 2];
    std::io::Read::read_exact(&mut child.stdout.take().unwrap(), &mut line).unwrap();
    assert_eq!(&line, b"y\n");
    assert!(child.wait().unwrap().code().is_some());
}
