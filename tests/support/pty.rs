//! A pseudo-terminal with the program on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};

use super::PATIENCE;

/// The program on a terminal of its own.
pub struct Terminal {
    control: File,
    /// Held so that the terminal's mode can be looked at after the program has ended.
    terminal: File,
    pub child: Child,
    screen: Arc<Mutex<Vec<u8>>>,
}

/// Starts `command` on a terminal of this size.
pub fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
    let control: OwnedFd = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&control).unwrap();
    unlockpt(&control).unwrap();
    let name = ptsname(&control, Vec::new()).unwrap().into_string().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
    tcsetwinsize(&terminal, size(rows, columns)).unwrap();
    let end = || terminal.try_clone().unwrap();
    let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
    let control = File::from(control);
    let screen = Arc::new(Mutex::new(Vec::new()));
    let (mut from, to) = (control.try_clone().unwrap(), screen.clone());
    // Ends with an error once both ends are closed; it may outlive the test.
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            to.lock().unwrap().extend_from_slice(&buffer[..count]);
        }
    });
    Terminal { control, terminal, child, screen }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

impl Terminal {
    /// What a person at the terminal types.
    pub fn types(&mut self, text: &str) {
        self.control.write_all(text.as_bytes()).unwrap();
    }

    /// Changes the size, as a window manager does: the program is told by a signal.
    pub fn resize(&self, rows: u16, columns: u16) {
        tcsetwinsize(&self.terminal, size(rows, columns)).unwrap();
        // The terminal is not the controlling one of the program, so the kernel does not tell it.
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    }

    /// Everything shown so far.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap()).into_owned()
    }

    /// The mode the terminal is in, in words that can be compared.
    pub fn mode(&self) -> String {
        let Termios { input_modes, output_modes, local_modes, control_modes, .. } =
            tcgetattr(&self.terminal).unwrap();
        format!("{input_modes:?} {output_modes:?} {local_modes:?} {control_modes:?}")
    }

    /// Waits until the screen holds `mark`.
    pub fn wait_for(&mut self, mark: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.screen().contains(mark) {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("no {mark:?}; ended: {ended:?}; screen:\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end.
    pub fn finish(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                panic!("does not end; screen:\n{}", self.screen());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
