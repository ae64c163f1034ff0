//! Standard streams, a lot of them.

use crate::support::{feed, run};

const BYTES: usize = 100_000_000;

/// Bytes that do not repeat soon, the same each time.
fn bytes(count: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

#[test]
fn a_hundred_megabytes_go_in_and_come_out_unchanged() {
    let Some(command) = run(&["-i", "debian", "--", "cat"]) else { return };
    let input = bytes(BYTES);
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
