//! `start`: the process that waits executes its command.

use std::os::fd::AsFd;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{Runtime, require};
use crate::channel::{Channel, Message};
use crate::error::{Error, Result, While};
use crate::hooks::{self, Point};
use crate::mounts;
use crate::state::Status;
use crate::sys;

impl Runtime {
    /// Starts a container that was created.
    ///
    /// # Errors
    /// It is not created, the command cannot be executed, or a hook fails, which ends it.
    pub fn start(&self, id: &str) -> Result<()> {
        let (folder, record, _lock) = self.open(id)?;
        require("start", id, record.status(&folder), &[Status::Created])?;
        let act = || format!("start container {id:?}");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let open = rustix::fs::open(folder.path(), flags, rustix::fs::Mode::empty()).during(act)?;
        let path = format!("{}/start.sock", mounts::by_descriptor(open.as_fd()));
        let address = SocketAddrUnix::new(path).during(act)?;
        let kind = SocketType::SEQPACKET;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).during(act)?;
        rustix::net::connect(&socket, &address).during(act)?;
        let channel = Channel::new(socket);
        channel.send(&Message::Go(0))?;
        let heard = channel.receive()?;
        // It is started now, whatever came of it.
        std::fs::remove_file(folder.start_socket()).during(act)?;
        match heard {
            None => {}
            Some(Message::Failed(125, text)) => return Err(Error::Inside(text)),
            Some(Message::Failed(code, text)) => return Err(Error::Command { text, code }),
            Some(_) => return Err(Error::refused(act(), "its process says what nobody understands")),
        }
        let started = hooks::run(&record.spec, Point::Poststart, &record.state_as(&folder, Status::Running));
        if started.is_err() {
            // It may have ended by itself.
            let _ = record.hold().map(|process| sys::signal_process(process.as_fd(), libc::SIGKILL));
        }
        started
    }
}
