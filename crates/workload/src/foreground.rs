//! A workload in the foreground that has a name: the process that runs it is its own monitor.
//!
//! It has a folder and a socket as any other, so that lists show it and requests reach it. Its process can write nothing once
//! its machine runs, so its state says that it runs as long as somebody holds the lock, and whoever takes a name next removes
//! the folder.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use crate::control::{self, Answer, Message, Request};
use crate::description::Wanted;
use crate::error::Result;
use crate::folder::{Folder, Workloads};
use crate::state::{State, Status, now_ms};

/// A name that this process has, as long as the value lives.
#[derive(Debug)]
pub struct Foreground {
    folder: Folder,
    lock: File,
    listener: UnixListener,
    state: State,
}

impl Foreground {
    /// Takes `name`, or one made from the image, for what this process is about to run.
    ///
    /// # Errors
    /// As [`Workloads::create`].
    pub fn claim(all: &Workloads, name: Option<String>, wanted: Wanted) -> Result<Foreground> {
        let folder = all.create(name, Wanted { remove: true, ..wanted })?;
        let lock = folder.watch()?;
        let listener = control::listen(&folder)?;
        let pid = Some(std::process::id());
        let state = State {
            status: Status::Running,
            monitor_pid: pid,
            worker_pid: pid,
            started_ms: Some(now_ms()),
            ..State::new()
        };
        folder.set_state(&state)?;
        folder.tell("start", &[]);
        Ok(Foreground { folder, lock, listener, state })
    }

    /// Its folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Has `answer` answer requests, on threads of their own, until the process ends.
    ///
    /// # Errors
    /// The host has no thread.
    pub fn serve(
        self,
        answer: impl Fn(Message<Request>) -> Answer + Send + Sync + 'static,
    ) -> io::Result<()> {
        let Foreground { folder: _, lock, listener, state } = self;
        let answer = Arc::new(move |message: Message<Request>| match message.body {
            Request::State => Answer::State { state: Box::new(state.clone()) },
            _ => answer(message),
        });
        let accept = move || {
            let _held = lock;
            for client in listener.incoming() {
                let (Ok(client), answer) = (client, answer.clone()) else { continue };
                let serve = std::thread::Builder::new().name("client".to_owned());
                // Without a thread the client sees the end of its connection.
                let _ = serve.spawn(move || answer_all(client, &*answer));
            }
        };
        std::thread::Builder::new().name("control".to_owned()).spawn(accept).map(drop)
    }
}

fn answer_all(client: UnixStream, answer: &dyn Fn(Message<Request>) -> Answer) {
    let Ok((mut sender, mut receiver)) = control::halves(client, "a client") else { return };
    loop {
        let (id, answer) = match receiver.receive::<Request>() {
            Ok(Some(message)) => (message.id, answer(message)),
            Ok(None) => return,
            Err(error) => {
                let _ = sender.send(0, &Answer::Error { reason: error.to_string() }, &[]);
                return;
            }
        };
        if sender.send(id, &answer, &[]).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::Client;
    use crate::folder::testing::{wanted, workloads};

    #[test]
    fn it_has_its_name_alone_answers_and_is_gone_with_its_process() {
        let (_dir, all) = workloads();
        let first = Foreground::claim(&all, Some("web".to_owned()), wanted()).unwrap();
        assert!(Foreground::claim(&all, Some("web".to_owned()), wanted()).is_err());
        assert!(all.create(Some("web".to_owned()), wanted()).is_err());
        let found = all.find("web").unwrap();
        assert_eq!(found.state().unwrap().status, Status::Running);
        drop(first);
        assert!(all.find("web").unwrap_err().is_not_found());

        let second = Foreground::claim(&all, Some("web".to_owned()), wanted()).unwrap();
        assert!(!found.path().exists(), "what the first left is removed");
        let folder = second.folder().clone();
        second
            .serve(|message| match message.body {
                Request::Pause => Answer::Done,
                other => Answer::Error { reason: format!("{other:?}") },
            })
            .unwrap();
        let mut client = Client::connect(&folder).unwrap();
        assert_eq!(client.ask(&Request::Pause, &[]).unwrap(), Answer::Done);
        let said = client.ask(&Request::State, &[]).unwrap();
        assert!(matches!(said, Answer::State { state } if state.status == Status::Running));
        assert!(client.ask(&Request::Wait, &[]).is_err());
    }
}
