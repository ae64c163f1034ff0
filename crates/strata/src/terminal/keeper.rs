//! The one way out on which this process can undo nothing is `kill -9`. So a shell waits beside it for its end, and puts
//! the terminal back if it is still as this process made it.
//!
//! It ignores what keys and terminals send, and is in a group of its own, where nobody kills it by mistake. A host that has
//! no `sh` or `stty` has no keeper.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// Says on its standard error that it knows how the terminal is; waits for a line that says that it is in raw mode now; and
/// for the end. A mode that is another by then is somebody else's business: a shell that reads its next line.
const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM TTOU TSTP
exec 3<&1 >/dev/null
before=$(stty -g <&3) || exit
echo >&2
read -r line
raw=$(stty -g <&3)
read -r line
[ "$(stty -g <&3)" = "$raw" ] && stty "$before" <&3
"#;

/// Ends, and looks at the terminal a last time, when this is dropped, or when this process is no more.
#[derive(Debug)]
pub struct Keeper(Child);

impl Keeper {
    /// Starts it, if the host has what it needs. It knows how the terminal at standard input is when this returns.
    pub fn start() -> Option<Self> {
        Self::spawn().inspect_err(|error| tracing::debug!(%error, "no keeper for the terminal")).ok()
    }

    fn spawn() -> io::Result<Self> {
        let terminal = io::stdin().as_fd().try_clone_to_owned()?;
        let mut shell = Command::new("sh");
        shell.args(["-c", SCRIPT]).stdin(Stdio::piped()).stdout(terminal).stderr(Stdio::piped());
        let mut child = shell.process_group(0).spawn()?;
        if let Some(mut ready) = child.stderr.take() {
            ready.read_exact(&mut [0])?;
        }
        Ok(Self(child))
    }

    /// The terminal is in raw mode from now on.
    pub fn is_raw_now(&mut self) {
        if let Some(line) = &mut self.0.stdin {
            // If it is gone there is none to tell.
            let _ = line.write_all(b"\n");
        }
    }
}
