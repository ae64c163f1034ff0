//! A machine's state, taken out and put in while it is paused.

use std::sync::Arc;
use std::sync::mpsc::channel;

use memory::GuestRam;
use state::{Archive, Header};

use super::{Machine, Message, RunState, Supervisor};
use crate::Error;
use crate::snapshot::disks::DISKS;
use crate::snapshot::{self, Snapshot};
use crate::vcpu::{self, Command};

impl Machine {
    /// Guest memory, for threads beside the owner's.
    pub fn shared_ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// All state but memory of a machine that is paused.
    ///
    /// # Errors
    /// [`snapshot::Error`]: it is not paused, or about to end.
    pub fn capture(&self) -> Result<Archive, Error> {
        let (reply, answer) = channel();
        let _ = self.messages.send(Message::Save(reply));
        let mut archive = answer.recv().unwrap_or_else(|_| Err(snapshot::Error::NotPaused.into()))?;
        archive.header.cpu_model.clone_from(&self.config.cpu_model);
        archive.put(snapshot::path::CONFIG, snapshot::encode_config(&self.config)?);
        let disks = self.disks.state()?;
        archive.put(snapshot::path::DISKS, snapshot::encode(snapshot::path::DISKS, DISKS, &disks)?);
        Ok(archive)
    }
}

impl Supervisor {
    pub(super) fn save(&mut self) -> Result<Archive, Error> {
        if self.state != RunState::Paused || !self.backlog.is_empty() {
            return Err(snapshot::Error::NotPaused.into());
        }
        if self.power.is_requested() {
            return Err(snapshot::Error::Ending.into());
        }
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for vcpu in &self.vcpus {
            let (to, from) = channel();
            vcpu.tell(Command::Save(to));
            vcpus.push(from.recv().map_err(|_| snapshot::Error::NotPaused)?);
        }
        let header = Header { board: snapshot::BOARD.to_owned(), ..Header::default() };
        let mut archive = Archive::new(header);
        self.board.save(&mut archive, &vcpus)?;
        for (index, saved) in vcpus.iter().enumerate() {
            let path = snapshot::path::vcpu(index);
            let section = arch::x86::saved::save(&saved.state);
            let section =
                section.map_err(|source| snapshot::Error::Section { path: path.clone(), source })?;
            archive.put(path, section);
        }
        Ok(archive)
    }

    pub(super) fn restore(&mut self, snapshot: Snapshot) -> Result<(), Error> {
        let Snapshot { mut archive, clocks, config: _, header: _, workload: _, disks: _, ram: _ } = snapshot;
        let (saved, host) = (clocks.tsc_khz, crate::tsc::host_tsc_khz());
        // What NTP still corrects; more would be seen by the guest.
        if saved.abs_diff(host) > saved / 4000 {
            return Err(snapshot::Error::Tsc { saved, host }.into());
        }
        let mut vcpus = Vec::with_capacity(self.vcpus.len());
        for (index, latched_nmi) in clocks.latched_nmis.iter().enumerate() {
            let path = snapshot::path::vcpu(index);
            let section = archive.take(&path).map_err(snapshot::Error::from)?;
            let state = arch::x86::saved::restore(&section);
            let state = state.map_err(|source| snapshot::Error::Section { path, source })?;
            vcpus.push(vcpu::Saved { state, latched_nmi: *latched_nmi });
        }
        self.board.restore(&mut archive, &clocks, &mut vcpus)?;
        archive.finish().map_err(snapshot::Error::from)?;
        for (vcpu, saved) in self.vcpus.iter().zip(vcpus) {
            vcpu.tell(Command::Restore(Box::new(saved)));
        }
        Ok(())
    }
}
