//! Notifications of virtio queues that an engine tells of by eventfd ([`engine::Doorbells`]), and the thread that hands them to
//! the devices: a vCPU does not wait for a device's work then.
//!
//! What is rung while the machine comes to rest may be lost: a queue that is started looks at its ring first, and one that is
//! stopped is not looked at.

use std::os::fd::{AsFd, OwnedFd};
use std::thread::JoinHandle;

use engine::Vm;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};

use crate::Error;

/// Token of the event that ends the thread; no doorbell has it.
const END: u64 = u64::MAX;
const EVENTS_AT_ONCE: usize = 16;

/// A place in device memory and what the guest stores there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Guest physical address of a register of four bytes.
    pub gpa: u64,
    /// What is stored.
    pub value: u32,
}

/// The doorbells of one machine; dropped, they ring no more.
pub struct Doorbells {
    end: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

impl Doorbells {
    /// Has `vm` tell of stores to `bells`, each of which is handed to `ring`. `None` if its engine has no such thing.
    ///
    /// # Errors
    /// The engine's, and the host's.
    pub fn hang(
        vm: &dyn Vm,
        bells: &[Doorbell],
        ring: impl Fn(Doorbell) + Send + 'static,
    ) -> Result<Option<Self>, Error> {
        let Some(at) = vm.doorbells().filter(|_| !bells.is_empty()) else { return Ok(None) };
        let failed = |errno: rustix::io::Errno| Error::Device {
            name: "doorbells".to_owned(),
            source: std::io::Error::from(errno).into(),
        };
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed);
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let watch = |event: &OwnedFd, token| {
            epoll::add(&epoll, event, EventData::new_u64(token), EventFlags::IN).map_err(failed)
        };
        let mut hung = Vec::with_capacity(bells.len());
        for (token, bell) in (0..).zip(bells) {
            let event = event()?;
            watch(&event, token)?;
            at.add(bell.gpa, bell.value, event.as_fd())?;
            hung.push((*bell, event));
        }
        let end = event()?;
        watch(&end, END)?;
        let name = "doorbells".to_owned();
        let work = move || answer(&epoll, &hung, ring);
        let thread = std::thread::Builder::new().name(name.clone()).spawn(work);
        let thread = Some(thread.map_err(|source| Error::Thread { name, source })?);
        Ok(Some(Self { end, thread }))
    }
}

/// Until it is told to end.
fn answer(epoll: &OwnedFd, hung: &[(Doorbell, OwnedFd)], ring: impl Fn(Doorbell)) {
    loop {
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        match epoll::wait(epoll, rustix::buffer::spare_capacity(&mut events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return tracing::error!(%error, "wait for doorbells"),
        }
        for event in events {
            let token = event.data.u64();
            let bell = usize::try_from(token).ok().and_then(|index| hung.get(index));
            let Some((bell, event)) = bell else { return };
            // Before the work: who rings meanwhile is heard the next time.
            let _ = rustix::io::read(event, &mut [0; 8]);
            ring(*bell);
        }
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        let _ = rustix::io::write(&self.end, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::mpsc::channel;
    use std::sync::{Arc, Mutex};

    use engine::{Vcpu, VcpuSignal};

    use super::*;

    /// An engine that keeps what it was given.
    #[derive(Default)]
    struct Bells(Mutex<Vec<(u64, u32, OwnedFd)>>);

    impl engine::Doorbells for Bells {
        fn add(&self, gpa: u64, value: u32, event: BorrowedFd<'_>) -> Result<(), engine::Error> {
            self.0.lock().unwrap().push((gpa, value, event.try_clone_to_owned().unwrap()));
            Ok(())
        }
    }

    struct Hearing(Arc<Bells>);

    impl Vm for Hearing {
        fn create_vcpu(&self, _: u32, _: Arc<VcpuSignal>) -> Result<Box<dyn Vcpu>, engine::Error> {
            unreachable!("none is wanted")
        }

        fn doorbells(&self) -> Option<Arc<dyn engine::Doorbells>> {
            Some(self.0.clone())
        }
    }

    #[test]
    fn each_bell_is_answered_and_the_thread_ends_with_them() {
        let bells = Arc::new(Bells::default());
        let places: Vec<_> =
            (0..40).map(|n| Doorbell { gpa: 0x50 + u64::from(n) * 0x1000, value: n }).collect();
        let (rung, heard) = channel();
        let hung = Doorbells::hang(&Hearing(bells.clone()), &places, move |bell| rung.send(bell).unwrap());
        let hung = hung.unwrap().unwrap();
        let at = bells.0.lock().unwrap();
        assert!(at.iter().map(|(gpa, value, _)| Doorbell { gpa: *gpa, value: *value }).eq(places.clone()));
        for (place, (_, _, event)) in places.iter().zip(at.iter()).rev() {
            rustix::io::write(event, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(heard.recv().unwrap(), *place);
        }
        drop(hung);
        assert!(heard.recv().is_err(), "nobody rings any more");
    }
}
