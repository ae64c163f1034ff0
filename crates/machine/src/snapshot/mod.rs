//! A machine at rest, in a folder.
//!
//! | file | what |
//! |---|---|
//! | `state` | a [`state::Archive`]: configuration, clocks, vCPUs, interrupt controllers, devices, what is known of `ram` |
//! | `ram` | guest memory, sparse; mapped privately by whoever restores it |
//!
//! It belongs to no engine. `ram` is durable before `state` is said to be; `state` ends with a checksum of itself; and the folder
//! gets its name last ([`folder`]): half a snapshot is never taken for a whole one.
//!
//! A machine that runs stands still only for what it wrote while its memory was copied ([`ahead`]).
//!
//! Time: the guest's clocks go on from where they stood. Machine time and every vCPU's TSC continue from their saved values,
//! whatever the host's TSC shows now; the real-time clock shows the host's time.
//!
//! Absent: what is outside of the machine. Disks are named, not copied; streams of the vsock device end, and the guest
//! is told so.

pub mod ahead;
pub(crate) mod disks;
pub mod folder;
pub mod fork;
mod over;
pub mod ram;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use arch::x86::CpuState;
use memory::GuestRam;
use serde::{Deserialize, Serialize};
use state::{ArchiveError, Header, Section};

use crate::MachineConfig;
use crate::boards::layout;
use crate::config::{OnReset, Source};
use crate::machine::Machine;
use crate::workload::{WORKLOAD, WorkloadState};
pub use ahead::Copying;
use disks::{DISKS, DiskState};
pub use folder::Folder;
pub use fork::Frozen;
pub use memory::written::HOST_REQUESTS;
use over::OverState;
pub use ram::PageMap;
use ram::{FileStamp, RamState};
pub use state::Archive;
pub use state::archive::FORMAT;

/// The board that snapshots of this build are of.
pub const BOARD: &str = "microvm";
/// Far above what 64 vCPUs and all devices come to.
const MAX_STATE_BYTES: u64 = 256 << 20;

/// Paths of sections that are no device's.
pub(crate) mod path {
    pub const CONFIG: &str = "config";
    pub const CLOCKS: &str = "clocks";
    pub const APICS: &str = "apics";
    pub const KVM_CLOCK: &str = "kvm-clock";
    pub const RAM: &str = "ram";
    pub const RAM_OVER: &str = "ram-over";
    pub const DISKS: &str = "disks";
    pub const WORKLOAD: &str = "workload";

    pub fn vcpu(index: usize) -> String {
        format!("vcpu/{index}")
    }

    pub fn device(name: &str) -> String {
        format!("device/{name}")
    }
}

/// Why a snapshot could not be written or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read or written.
    #[error("{act}")]
    Host {
        /// What was done.
        act: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The file `state` is not as it should be.
    #[error("state")]
    Archive(#[from] ArchiveError),
    /// One section of it is not.
    #[error("section {path:?}")]
    Section {
        /// Where it is.
        path: String,
        /// What is wrong.
        #[source]
        source: state::Error,
    },
    /// A device did not take its section.
    #[error("devices")]
    Devices(#[from] devices::BusError),
    /// It is of another kind of machine.
    #[error("it is of a machine of board {found:?}, this build has {BOARD:?}")]
    Board {
        /// What it says.
        found: String,
    },
    /// Memory of another size.
    #[error("its memory file has {found:#x} bytes, not {expected:#x}")]
    RamSize {
        /// What is there.
        found: u64,
        /// What should be.
        expected: u64,
    },
    /// Memory that is not what was written.
    #[error("its memory file is damaged at {offset:#x}")]
    RamChanged {
        /// Where in the file.
        offset: u64,
    },
    /// Memory that is only what was written over that of another file.
    #[error("its memory is what one machine has changed of a file that is not here")]
    Base,
    /// A disk is not there.
    #[error("open its disk {}", path.display())]
    Disk {
        /// Where it was.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// A disk that was written to.
    #[error("its disk {} was changed since", path.display())]
    DiskChanged {
        /// Where it is.
        path: PathBuf,
    },
    /// Guest memory could not be read.
    #[error("guest memory")]
    Memory(#[from] memory::Error),
    /// The guest has measured its TSC, which cannot run at another speed here.
    #[error("its time-stamp counter runs at {saved} kHz, this host's at {host} kHz")]
    Tsc {
        /// When it was saved.
        saved: u32,
        /// Here.
        host: u32,
    },
    /// The guest has measured its APIC timers.
    #[error("its local APICs' timers count at {saved} Hz, those of engine {engine} at {here} Hz")]
    ApicTimer {
        /// When it was saved.
        saved: u64,
        /// The engine.
        engine: &'static str,
        /// What it has.
        here: u64,
    },
    /// A machine that runs changes while it is looked at.
    #[error("the machine is not paused, or has ended")]
    NotPaused,
    /// The next thing it does is a reset or its end.
    #[error("the guest has just asked for a reset or to be turned off")]
    Ending,
}

/// What time it is in a machine, and how it is counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockState {
    /// Machine time in nanoseconds.
    pub now_ns: u64,
    /// Frequency of the TSC in kHz.
    pub tsc_khz: u32,
    /// Input frequency of the local APICs' timers in Hz.
    pub apic_timer_hz: u64,
    /// Each vCPU's TSC.
    pub tscs: Vec<u64>,
    /// vCPUs that wait for a start-up IPI and have seen an NMI meanwhile.
    pub latched_nmis: Vec<bool>,
}

/// Section kind and version of [`ClockState`].
pub(crate) const CLOCKS: (&str, u32) = ("clocks", 1);
const CONFIG: (&str, u32) = ("machine-config", 1);
const RAM: (&str, u32) = ("guest-ram", 1);
const RAM_OVER: (&str, u32) = ("guest-ram-over", 1);

/// A snapshot that was opened and read: everything in it is whole, and nothing was applied yet.
#[derive(Debug)]
pub struct Snapshot {
    /// The machine it is of. Disks and the like may be exchanged for others of the same shape.
    pub config: MachineConfig,
    /// What it said of itself.
    pub header: Header,
    /// The command that ran in it, if one did.
    pub workload: Option<WorkloadState>,
    pub(crate) archive: Archive,
    pub(crate) clocks: ClockState,
    pub(crate) disks: Vec<DiskState>,
    pub(crate) ram: RamFiles,
}

/// The files of guest memory.
#[derive(Debug)]
pub struct RamFiles {
    /// All of it, or what its machine has changed of `base`.
    pub ram: File,
    /// All of it, as it was before, which other machines may go on from as well.
    pub base: Option<File>,
}

impl From<File> for RamFiles {
    fn from(ram: File) -> Self {
        Self { ram, base: None }
    }
}

/// What is known of the files of guest memory.
#[derive(Debug)]
pub enum Memory {
    /// All of it is in one.
    Whole(RamState),
    /// What changed is in one.
    Over(OverState),
}

impl Memory {
    fn take(archive: &mut Archive) -> Result<Self, Error> {
        if archive.sections().any(|(at, _)| at == path::RAM_OVER) {
            return take(archive, path::RAM_OVER, RAM_OVER).map(Self::Over);
        }
        take(archive, path::RAM, RAM).map(Self::Whole)
    }

    fn put(&self, archive: &mut Archive) -> Result<(), Error> {
        match self {
            Self::Whole(state) => archive.put(path::RAM, encode(path::RAM, RAM, state)?),
            Self::Over(state) => archive.put(path::RAM_OVER, encode(path::RAM_OVER, RAM_OVER, state)?),
        }
        Ok(())
    }

    fn ranges(&self) -> &[(u64, u64)] {
        match self {
            Self::Whole(state) => &state.ranges,
            Self::Over(state) => &state.ranges,
        }
    }

    fn check(&self, files: &RamFiles) -> Result<(), Error> {
        match self {
            Self::Whole(state) => ram::check(&files.ram, state),
            Self::Over(state) => state.check(&files.ram, files.base.as_ref()),
        }
    }
}

/// Writes `machine`, which is paused, to the empty files `state` and `ram`; both are durable then.
///
/// # Errors
/// All but those of reading. The files are to be thrown away then; the machine can go on.
pub fn write(
    machine: &Machine,
    build: &str,
    state: &File,
    ram: &File,
    map: &PageMap,
) -> Result<(), crate::Error> {
    let archive = capture(machine, build, None)?;
    let memory = ram::write(machine.ram(), ram, map)?;
    complete(archive, &Memory::Whole(memory), state)?;
    Ok(sync(state, ram)?)
}

/// Everything but memory of `machine`, which is paused, and of the workload that runs in it.
///
/// # Errors
/// As [`write()`].
pub fn capture(
    machine: &Machine,
    build: &str,
    workload: Option<&WorkloadState>,
) -> Result<Archive, crate::Error> {
    let mut archive = machine.capture()?;
    archive.header.build = build.to_owned();
    if let Some(workload) = workload {
        archive.put(path::WORKLOAD, encode(path::WORKLOAD, WORKLOAD, workload)?);
    }
    Ok(archive)
}

/// Writes what [`capture`] took, with what is known of memory, to the empty file `state`; [`sync`] makes it durable.
///
/// # Errors
/// The host's.
pub fn complete(mut archive: Archive, memory: &Memory, state: &File) -> Result<(), Error> {
    memory.put(&mut archive)?;
    let mut file = state;
    file.write_all(&archive.to_bytes()).map_err(|source| Error::Host { act: "write state", source })
}

/// Makes both files durable, for which no machine needs to stand still.
///
/// # Errors
/// The host's. The files are to be thrown away then.
pub fn sync(state: &File, ram: &File) -> Result<(), Error> {
    ram.sync_all().map_err(|source| Error::Host { act: "write guest memory", source })?;
    state.sync_all().map_err(|source| Error::Host { act: "write state", source })
}

impl Snapshot {
    /// Reads `state` and looks at `ram`, which is compared with what was written if anybody may have touched it since.
    ///
    /// # Errors
    /// All of [`Error`] that tell of damage and of other machines.
    pub fn read(state: &File, ram: impl Into<RamFiles>) -> Result<Self, Error> {
        let failed = |source| Error::Host { act: "read state", source };
        // By position: processes that go on from one snapshot may share the open file.
        let len = FileStamp::of(state).map_err(failed)?.len_bytes();
        let mut bytes = vec![0; usize::try_from(len.min(MAX_STATE_BYTES)).unwrap_or(usize::MAX)];
        state.read_exact_at(&mut bytes, 0).map_err(failed)?;
        Self::parse(&bytes, ram)
    }

    /// The same from the bytes of `state`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn parse(state: &[u8], ram: impl Into<RamFiles>) -> Result<Self, Error> {
        let mut archive = Archive::parse(state)?;
        let header = archive.header.clone();
        if header.board != BOARD {
            return Err(Error::Board { found: header.board });
        }
        let config: MachineConfig = take(&mut archive, path::CONFIG, CONFIG)?;
        let clocks: ClockState = take(&mut archive, path::CLOCKS, CLOCKS)?;
        let memory = Memory::take(&mut archive)?;
        let malformed = |at: &str, reason: &str| Error::Section {
            path: at.to_owned(),
            source: state::Error::Malformed { kind: "machine", reason: reason.to_owned() },
        };
        config.validate().map_err(|error| malformed(path::CONFIG, &crate::machine::chain(&error)))?;
        if memory.ranges() != layout::ram_ranges(config.memory_bytes) {
            return Err(malformed(path::RAM, "regions of another machine"));
        }
        let cpus = config.cpus as usize;
        if clocks.tscs.len() != cpus || clocks.latched_nmis.len() != cpus || clocks.apic_timer_hz == 0 {
            return Err(malformed(path::CLOCKS, "clocks of another machine"));
        }
        let has_workload = archive.sections().any(|(at, _)| at == path::WORKLOAD);
        let workload: Option<WorkloadState> =
            has_workload.then(|| take(&mut archive, path::WORKLOAD, WORKLOAD)).transpose()?;
        if let Some(Err(reason)) = workload.as_ref().map(WorkloadState::check) {
            return Err(malformed(path::WORKLOAD, reason));
        }
        let has_disks = archive.sections().any(|(at, _)| at == path::DISKS);
        let disks: Vec<DiskState> =
            has_disks.then(|| take(&mut archive, path::DISKS, DISKS)).transpose()?.unwrap_or_default();
        if has_disks && disks.len() != config.disks.len() {
            return Err(malformed(path::DISKS, "disks of another machine"));
        }
        let mut ram = ram.into();
        memory.check(&ram)?;
        ram.base = ram.base.filter(|_| matches!(memory, Memory::Over(_)));
        Ok(Self { config, header, workload, archive, clocks, disks, ram })
    }
}

impl Snapshot {
    /// Guest memory as it was saved, mapped privately.
    ///
    /// # Errors
    /// The host's.
    pub fn memory(&self) -> Result<GuestRam, Error> {
        let RamFiles { ram, base } = &self.ram;
        let over = base.as_ref().map(|_| ram);
        Ok(GuestRam::from_files(&self.ram_ranges(), base.as_ref().unwrap_or(ram), over)?)
    }

    /// The registers of vCPU `index`; `None` if there is no such vCPU.
    ///
    /// # Errors
    /// [`Error::Section`]
    pub fn vcpu(&self, index: u32) -> Result<Option<CpuState>, Error> {
        let path = path::vcpu(index as usize);
        let section = self.archive.sections().find(|(at, _)| *at == path);
        let state = section.map(|(_, section)| arch::x86::saved::restore(section)).transpose();
        state.map_err(|source| Error::Section { path, source })
    }

    pub(crate) fn ram_ranges(&self) -> Vec<(u64, u64)> {
        layout::ram_ranges(self.config.memory_bytes)
    }

    /// Input frequency of the timers of local APICs, which `engine` must have too if it has its own.
    pub(crate) fn apic_timer_hz(&self, engine: &dyn engine::Engine) -> Result<u64, Error> {
        let saved = self.clocks.apic_timer_hz;
        match engine.apic_timer_hz() {
            Some(here) if here != saved => Err(Error::ApicTimer { saved, engine: engine.name(), here }),
            _ => Ok(saved),
        }
    }
}

/// The configuration as it is saved: what the guest was loaded from has served its turn.
pub(crate) fn encode_config(config: &MachineConfig) -> Result<Section, Error> {
    let mut config = config.clone();
    config.boot.initrd.clear();
    config.boot.kernel = Source::File("/".into());
    // There is nothing to start anew from.
    config.on_reset = OnReset::Stop;
    encode(path::CONFIG, CONFIG, &config)
}

/// The configuration to build from: nothing is loaded.
pub(crate) fn without_kernel(mut config: MachineConfig) -> MachineConfig {
    config.boot.kernel = Source::Bytes(Arc::default());
    config.boot.initrd.clear();
    config.on_reset = OnReset::Stop;
    config
}

pub(crate) fn encode<T: Serialize>(
    at: &str,
    (kind, version): (&'static str, u32),
    value: &T,
) -> Result<Section, Error> {
    Section::encode(kind, version, value).map_err(|source| Error::Section { path: at.to_owned(), source })
}

pub(crate) fn take<T: serde::de::DeserializeOwned>(
    archive: &mut Archive,
    at: &str,
    (kind, version): (&'static str, u32),
) -> Result<T, Error> {
    let section = archive.take(at)?;
    section.decode(kind, version).map_err(|source| Error::Section { path: at.to_owned(), source })
}

#[cfg(test)]
mod tests;
