//! What the guest finds in memory when it starts: kernel, initial RAM disk, command line, ACPI or MP tables, and
//! the structures of the protocol it is entered by.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arch::x86::CpuState;
use devices::acpi::{
    self, AcpiConfig, AcpiTables, GenerationIdAt, Presence, SerialPort, Trigger, VirtioMmio,
};
use devices::chipset::ioapic;
use devices::serial::uart16550;
use devices::virtio::MmioSlot;
use memory::GuestRam;

use super::{layout, mptable};
use crate::config::{Acpi, ConsoleConfig, OnReset, Protocol, Source};
use crate::loader::elf::{Elf, ZeroFill};
use crate::loader::{self, Image, initrd, linux32, linux64, pvh};
use crate::{Error, MachineConfig};

/// What an initial RAM disk is called in errors.
const INITRD: &str = "initrd";
/// MTRRs enabled, default type write-back: what firmware leaves for RAM; without it Linux does not use PAT.
const MTRR_ENABLED_WRITE_BACK: u64 = 0x806;

/// A kernel and what goes with it, to be put into memory.
///
/// Nothing of it stays in the host's memory between loads, for it would stay as long as the machine: at a reset
/// the files, which are held open, are read again, as firmware would read its disk. By then the process may be in its
/// sandbox, where files can be read but no longer opened, nor asked about.
pub struct Boot {
    /// What the guest gets, until nobody will load it again.
    inputs: Mutex<Option<Inputs>>,
    kernel_name: String,
    config: MachineConfig,
    slots: Vec<MmioSlot>,
}

/// Where the guest's bytes come from.
struct Inputs {
    kernel: Input,
    initrd: Vec<Input>,
    /// Whether memory was loaded before, and so is not all zeros.
    loaded: bool,
}

/// A source that is there.
enum Input {
    /// A file of that many bytes when it was opened.
    File(File, u64, PathBuf),
    Bytes(Arc<[u8]>),
}

impl Boot {
    /// Opens kernel and initial RAM disk.
    pub fn new(config: &MachineConfig, slots: Vec<MmioSlot>) -> Result<Self, Error> {
        let kernel = Input::open("kernel", &config.boot.kernel, loader::MAX_IMAGE_BYTES)?;
        let pieces = config.boot.initrd.iter();
        let initrd: Result<_, _> =
            pieces.map(|piece| Input::open(INITRD, piece, config.memory_bytes)).collect();
        let mut config = config.clone();
        let kernel_name = name(&config.boot.kernel, "kernel");
        config.boot.initrd.clear();
        config.boot.kernel = Source::Bytes(Arc::default());
        let inputs = Inputs { kernel, initrd: initrd?, loaded: false };
        Ok(Self { inputs: Mutex::new(Some(inputs)), kernel_name, config, slots })
    }

    /// Puts everything into memory and says how the first vCPU starts.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::Read`] and [`Error::Memory`].
    pub fn load(&self, ram: &GuestRam) -> Result<CpuState, Error> {
        let mut guard = self.inputs.lock().unwrap_or_else(PoisonError::into_inner);
        let inputs = guard.as_mut().ok_or_else(|| Error::Config {
            field: "on_reset".to_owned(),
            reason: "a machine that ends at a reset is loaded once".to_owned(),
        })?;
        let zero =
            if std::mem::replace(&mut inputs.loaded, true) { ZeroFill::Write } else { ZeroFill::Fresh };
        let state = self.load_inputs(ram, inputs, zero)?;
        if self.config.on_reset == OnReset::Stop {
            *guard = None;
        }
        Ok(state)
    }

    fn load_inputs(&self, ram: &GuestRam, inputs: &Inputs, zero: ZeroFill) -> Result<CpuState, Error> {
        let failed = |source| Error::Load { what: self.kernel_name.clone(), source };
        // An ELF kernel goes from its file to the guest; what must be unpacked is in memory meanwhile.
        let unpacked;
        let image = match &inputs.kernel {
            Input::File(file, len, _) if is_executable(file, *len) => Image::File(file, *len),
            packed => {
                let bytes = packed.read("kernel", loader::MAX_IMAGE_BYTES)?;
                unpacked = loader::extract_vmlinux(&bytes).map_err(failed)?.into_owned();
                Image::from(&unpacked)
            }
        };
        let elf = Elf::parse(image).map_err(failed)?;
        elf.check_loadable().map_err(failed)?;
        let (start, end) = elf.extent();
        if start < layout::ONE_MIB {
            let memory_mib = self.config.memory_bytes >> 20;
            return Err(failed(loader::Error::KernelDoesNotFit { start, end, memory_mib }));
        }
        elf.load(ram, zero).map_err(failed)?;
        let initrd = self.load_initrd(ram, end, &inputs.initrd)?;
        let has_acpi = match self.config.acpi {
            Acpi::Auto => !is_told_not_to(&self.config.boot.cmdline) && elf.has_acpi().map_err(failed)?,
            Acpi::On => true,
            Acpi::Off => false,
        };
        let cmdline = self.cmdline(has_acpi).map_err(failed)?;
        ram.write(layout::CMDLINE, cmdline.as_bytes())?;
        ram.write(layout::CMDLINE + cmdline.len() as u64, &[0])?;
        let rsdp = self.load_tables(ram, has_acpi)?;
        let mut state = self.enter(ram, &elf, initrd, cmdline.len() as u32, rsdp).map_err(failed)?;
        state.msrs.mtrr_def_type = MTRR_ENABLED_WRITE_BACK;
        Ok(state)
    }

    /// The command line; a kernel without ACPI finds its devices there.
    fn cmdline(&self, has_acpi: bool) -> Result<String, loader::Error> {
        let mut cmdline = self.config.boot.cmdline.trim().to_owned();
        if !has_acpi {
            for slot in &self.slots {
                cmdline.push(' ');
                cmdline.push_str(&slot.kernel_parameter());
            }
        }
        let (len, max) = (cmdline.len(), loader::MAX_CMDLINE_BYTES);
        if len > max { Err(loader::Error::CmdlineTooLong { len, max }) } else { Ok(cmdline) }
    }

    /// Writes ACPI tables, or an MP table. Gives the address of the RSDP, or 0.
    fn load_tables(&self, ram: &GuestRam, has_acpi: bool) -> Result<u64, Error> {
        if !has_acpi {
            let is_level = |line| self.slots.iter().any(|slot| slot.gsi == line);
            ram.write(layout::MP_TABLE, &mptable::build(layout::MP_TABLE, self.config.cpus, is_level))?;
            return Ok(0);
        }
        let tables = acpi_tables(&self.config, &self.slots)?;
        for (gpa, bytes) in &tables.blobs {
            ram.write(*gpa, bytes)?;
        }
        Ok(tables.rsdp_gpa)
    }

    /// Puts the pieces of the initial RAM disk, one after the other, as high as they go.
    fn load_initrd(
        &self,
        ram: &GuestRam,
        kernel_end: u64,
        pieces: &[Input],
    ) -> Result<Option<(u64, u64)>, Error> {
        let limit = self.config.memory_bytes;
        let pieces: Result<Vec<_>, _> = pieces.iter().map(|piece| piece.read(INITRD, limit)).collect();
        let pieces = pieces?;
        let len = initrd::size_bytes(&pieces);
        if len == 0 {
            return Ok(None);
        }
        let start = initrd::place(ram, kernel_end, len)
            .map_err(|source| Error::Load { what: INITRD.to_owned(), source })?;
        initrd::write(ram, start, &pieces)?;
        Ok(Some((start, len)))
    }

    fn enter(
        &self,
        ram: &GuestRam,
        elf: &Elf<'_>,
        initrd: Option<(u64, u64)>,
        cmdline_len: u32,
        rsdp: u64,
    ) -> Result<CpuState, loader::Error> {
        let memory = layout::memory_map(self.config.memory_bytes);
        let protocol = self.config.boot.protocol;
        let is_long = elf.class() == loader::elf::Class::Elf64;
        let pvh_entry = match protocol {
            Protocol::Auto => elf.pvh_entry()?,
            Protocol::Pvh => Some(elf.pvh_entry()?.ok_or(loader::Error::NoPvh)?),
            Protocol::Linux64 => None,
        };
        if let Some(entry) = pvh_entry {
            let info = pvh::StartInfo { cmdline: layout::CMDLINE, initrd, rsdp, memory: &memory };
            info.write(ram, layout::START_INFO)?;
            return Ok(pvh::entry_state(entry, layout::START_INFO));
        }
        let params =
            linux64::BootParams { cmdline: layout::CMDLINE, cmdline_len, initrd, rsdp, memory: &memory };
        if !is_long {
            if protocol == Protocol::Linux64 {
                return Err(loader::Error::NotLong);
            }
            linux32::write(ram, &layout::LINUX_PLACES, &params)?;
            // Addresses in a 32-bit ELF file have 32 bits.
            return Ok(linux32::entry_state(elf.entry() as u32, &layout::LINUX_PLACES));
        }
        linux64::write(ram, &layout::LINUX_PLACES, &params)?;
        Ok(linux64::entry_state(elf.entry(), &layout::LINUX_PLACES))
    }
}

fn acpi_tables(config: &MachineConfig, slots: &[MmioSlot]) -> Result<AcpiTables, Error> {
    let serial = SerialPort { port: uart16550::COM1, gsi: 4 };
    let has_serial = config.console != ConsoleConfig::Virtio;
    let virtio = slots.iter().map(|slot| VirtioMmio {
        gpa: slot.gpa as u32, // the window is below 4 GiB
        len: slot.size as u32,
        gsi: slot.gsi,
        trigger: Trigger::Level,
    });
    let board = AcpiConfig {
        gpa: layout::ACPI_TABLES,
        len: layout::GENERATION_ID - layout::ACPI_TABLES,
        vcpu_count: config.cpus,
        lapic_gpa: layout::LAPIC,
        ioapic_gpa: ioapic::DEFAULT_ADDRESS as u32,
        keyboard: Presence::Absent,
        serial: if has_serial { vec![serial] } else { Vec::new() },
        virtio: virtio.collect(),
        generation_id: config.generation_id.then_some(GenerationIdAt {
            gpa: layout::GENERATION_ID as u32, // below 1 MiB
            gsi: layout::GENERATION_ID_LINE,
        }),
    };
    acpi::build(&board).map_err(|source| Error::Device { name: "acpi".to_owned(), source: Box::new(source) })
}

/// A kernel that will not read ACPI tables is told of its devices in the other way.
fn is_told_not_to(cmdline: &str) -> bool {
    cmdline.split_whitespace().any(|word| word == "acpi=off")
}

fn name(source: &Source, otherwise: &str) -> String {
    source.path().map_or_else(|| otherwise.to_owned(), |path| format!("{otherwise} {}", path.display()))
}

/// Whether `file` is an ELF executable, the one kind of kernel that needs no unpacking. What cannot be read is
/// none, and an error when it is read as a whole.
fn is_executable(file: &File, len: u64) -> bool {
    Elf::parse(Image::File(file, len)).is_ok_and(|elf| !elf.is_shared_object())
}

impl Input {
    fn open(what: &'static str, source: &Source, limit: u64) -> Result<Self, Error> {
        let path = match source {
            Source::Bytes(bytes) => return Ok(Self::Bytes(bytes.clone())),
            Source::File(path) => path,
        };
        let failed = |source| Error::Read { what, path: path.clone(), source };
        let file = File::open(path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        if meta.is_file() {
            return Ok(Self::File(file, meta.len(), path.clone()));
        }
        // A pipe can be read once only.
        Ok(Self::Bytes(read_all(what, &file, limit).map_err(failed)?.into()))
    }

    /// All bytes; at most `limit`.
    fn read(&self, what: &'static str, limit: u64) -> Result<Cow<'_, [u8]>, Error> {
        let (mut file, path) = match self {
            Self::Bytes(bytes) => return Ok(Cow::Borrowed(bytes)),
            Self::File(file, _, path) => (file, path),
        };
        // Not the first time, after a reset.
        let bytes = file.seek(SeekFrom::Start(0)).and_then(|_| read_all(what, file, limit));
        bytes.map(Cow::Owned).map_err(|source| Error::Read { what, path: path.clone(), source })
    }
}

/// The rest of `file`. One byte more than `limit` is asked for, so that too long is noticed.
fn read_all(what: &str, file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let bound = if what == INITRD { "the machine's memory of " } else { "" };
        let reason = format!("larger than {bound}{} MiB", limit >> 20);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, reason));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    const KERNEL: u64 = 0x10_0000;

    fn boot(change: impl FnOnce(&mut MachineConfig)) -> (Boot, GuestRam) {
        let mut config = testing::config();
        change(&mut config);
        let ram = GuestRam::new(&layout::ram_ranges(config.memory_bytes)).unwrap();
        (Boot::new(&config, Vec::new()).unwrap(), ram)
    }

    fn bytes(ram: &GuestRam, gpa: u64) -> [u8; 16] {
        let mut bytes = [0; 16];
        ram.read(gpa, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn a_kernel_in_a_file_is_read_anew_at_a_reset_also_when_its_name_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::write(&path, testing::tiny_kernel()).unwrap();
        let (boot, ram) = boot(|config| {
            config.boot.kernel = Source::File(path.clone());
            config.on_reset = OnReset::Restart;
        });
        std::fs::remove_file(&path).unwrap();
        for _ in 0..2 {
            assert_eq!(boot.load(&ram).unwrap().rip, KERNEL);
            assert_eq!(bytes(&ram, KERNEL), [0xf4; 16]);
            // What the guest made of its memory, behind the file's part of the segment too.
            ram.write(KERNEL, &[1; 0x2000]).unwrap();
        }
        boot.load(&ram).unwrap();
        assert_eq!(bytes(&ram, KERNEL + 0x1000), [0; 16]);
    }

    #[test]
    fn the_guests_bytes_are_let_go_if_a_reset_ends_the_machine() {
        let initrd: Arc<[u8]> = Arc::from(&b"archive"[..]);
        let held = Arc::downgrade(&initrd);
        let (boot, ram) = boot(|config| config.boot.initrd = vec![Source::Bytes(initrd)]);
        boot.load(&ram).unwrap();
        assert!(held.upgrade().is_none());
        assert!(boot.load(&ram).is_err());
    }

    #[test]
    fn a_library_without_a_kernel_is_told_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lib.so");
        let mut library = testing::tiny_kernel();
        library[0x10] = 3;
        std::fs::write(&path, library).unwrap();
        let (boot, ram) = boot(|config| config.boot.kernel = Source::File(path));
        let error = boot.load(&ram).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("shared library"));
    }
}
