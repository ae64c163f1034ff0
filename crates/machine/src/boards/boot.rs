//! What the guest finds in memory when it starts: kernel, initial RAM disk, command line, ACPI or MP tables, and
//! the structures of the protocol it is entered by.

use std::io::Read;
use std::sync::Mutex;
use std::sync::PoisonError;

use arch::x86::CpuState;
use devices::acpi::{self, AcpiConfig, AcpiTables, Presence, SerialPort, Trigger, VirtioMmio};
use devices::chipset::ioapic;
use devices::serial::uart16550;
use devices::virtio::MmioSlot;
use memory::GuestRam;

use super::{layout, mptable};
use crate::config::{Acpi, ConsoleConfig, Protocol, Source};
use crate::loader::elf::{Elf, ZeroFill};
use crate::loader::{self, initrd, linux32, linux64, pvh};
use crate::{Error, MachineConfig};

/// MTRRs enabled, default type write-back: what firmware leaves for RAM; without it Linux does not use PAT.
const MTRR_ENABLED_WRITE_BACK: u64 = 0x806;

/// A kernel and what goes with it, ready to be put into memory any number of times.
pub struct Boot {
    vmlinux: Vec<u8>,
    kernel_name: String,
    initrd: Vec<u8>,
    cmdline: String,
    protocol: Protocol,
    cpus: u32,
    memory_bytes: u64,
    tables: Tables,
    /// Whether memory was loaded before, and so is not all zeros.
    loaded: Mutex<bool>,
}

/// How devices are described.
enum Tables {
    /// ACPI tables.
    Acpi(AcpiTables),
    /// An MP table at [`layout::MP_TABLE`].
    Mp(Vec<u8>),
}

impl Boot {
    /// Reads kernel and initial RAM disk, and decides how devices are described.
    pub fn new(config: &MachineConfig, slots: Vec<MmioSlot>) -> Result<Self, Error> {
        let kernel_name = name(&config.boot.kernel, "kernel");
        let load_error = |source| Error::Load { what: kernel_name.clone(), source };
        let image = read("kernel", &config.boot.kernel, loader::MAX_IMAGE_BYTES)?;
        let vmlinux = loader::extract_vmlinux(&image).map_err(load_error)?.into_owned();
        drop(image);
        let mut pieces = Vec::new();
        for source in &config.boot.initrd {
            pieces.push(read("initrd", source, config.memory_bytes)?);
        }
        let acpi = match config.acpi {
            Acpi::Auto => loader::has_acpi(&vmlinux) && !is_told_not_to(&config.boot.cmdline),
            Acpi::On => true,
            Acpi::Off => false,
        };
        let mut cmdline = config.boot.cmdline.trim().to_owned();
        let tables = if acpi {
            Tables::Acpi(acpi_tables(config, &slots)?)
        } else {
            for slot in &slots {
                cmdline.push(' ');
                cmdline.push_str(&slot.kernel_parameter());
            }
            let is_level = |line| slots.iter().any(|slot| slot.gsi == line);
            Tables::Mp(mptable::build(layout::MP_TABLE, config.cpus, is_level))
        };
        if cmdline.len() > loader::MAX_CMDLINE_BYTES {
            let (len, max) = (cmdline.len(), loader::MAX_CMDLINE_BYTES);
            return Err(load_error(loader::Error::CmdlineTooLong { len, max }));
        }
        Ok(Self {
            vmlinux,
            kernel_name,
            initrd: initrd::join(&pieces),
            cmdline,
            protocol: config.boot.protocol,
            cpus: config.cpus,
            memory_bytes: config.memory_bytes,
            tables,
            loaded: Mutex::new(false),
        })
    }

    /// Puts everything into memory and says how the first vCPU starts.
    ///
    /// # Errors
    /// [`Error::Load`] and [`Error::Memory`].
    pub fn load(&self, ram: &GuestRam) -> Result<CpuState, Error> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let zero = if std::mem::replace(&mut *loaded, true) { ZeroFill::Write } else { ZeroFill::Fresh };
        drop(loaded);
        let kernel = |source| Error::Load { what: self.kernel_name.clone(), source };
        let elf = Elf::parse(&self.vmlinux).map_err(kernel)?;
        let (start, end) = elf.extent();
        if start < layout::ONE_MIB {
            let memory_mib = self.memory_bytes >> 20;
            return Err(kernel(loader::Error::KernelDoesNotFit { start, end, memory_mib }));
        }
        elf.load(ram, zero).map_err(kernel)?;
        let initrd = self.load_initrd(ram, end)?;
        let rsdp = match &self.tables {
            Tables::Acpi(tables) => {
                for (gpa, bytes) in &tables.blobs {
                    ram.write(*gpa, bytes)?;
                }
                tables.rsdp_gpa
            }
            Tables::Mp(bytes) => {
                ram.write(layout::MP_TABLE, bytes)?;
                0
            }
        };
        ram.write(layout::CMDLINE, self.cmdline.as_bytes())?;
        ram.write(layout::CMDLINE + self.cmdline.len() as u64, &[0])?;
        let mut state = self.enter(ram, &elf, initrd, rsdp).map_err(kernel)?;
        state.msrs.mtrr_def_type = MTRR_ENABLED_WRITE_BACK;
        Ok(state)
    }

    /// How many vCPUs the tables speak of.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    fn load_initrd(&self, ram: &GuestRam, kernel_end: u64) -> Result<Option<(u64, u64)>, Error> {
        if self.initrd.is_empty() {
            return Ok(None);
        }
        let len = self.initrd.len() as u64;
        let start = initrd::place(ram, kernel_end, len)
            .map_err(|source| Error::Load { what: "initrd".to_owned(), source })?;
        ram.write(start, &self.initrd)?;
        Ok(Some((start, len)))
    }

    fn enter(
        &self,
        ram: &GuestRam,
        elf: &Elf<'_>,
        initrd: Option<(u64, u64)>,
        rsdp: u64,
    ) -> Result<CpuState, loader::Error> {
        let memory = layout::memory_map(self.memory_bytes);
        let is_long = elf.class() == loader::elf::Class::Elf64;
        let pvh_entry = match self.protocol {
            Protocol::Auto => elf.pvh_entry()?,
            Protocol::Pvh => Some(elf.pvh_entry()?.ok_or(loader::Error::NoPvh)?),
            Protocol::Linux64 => None,
        };
        if let Some(entry) = pvh_entry {
            let info = pvh::StartInfo { cmdline: layout::CMDLINE, initrd, rsdp, memory: &memory };
            info.write(ram, layout::START_INFO)?;
            return Ok(pvh::entry_state(entry, layout::START_INFO));
        }
        let params = linux64::BootParams {
            cmdline: layout::CMDLINE,
            cmdline_len: self.cmdline.len() as u32,
            initrd,
            rsdp,
            memory: &memory,
        };
        if !is_long {
            if self.protocol == Protocol::Linux64 {
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
        len: layout::ONE_MIB - layout::ACPI_TABLES,
        vcpu_count: config.cpus,
        lapic_gpa: layout::LAPIC,
        ioapic_gpa: ioapic::DEFAULT_ADDRESS as u32,
        keyboard: Presence::Absent,
        serial: if has_serial { vec![serial] } else { Vec::new() },
        virtio: virtio.collect(),
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

/// The bytes of `source`; at most `limit`, and one more from a file so that too long is noticed.
fn read(what: &'static str, source: &Source, limit: u64) -> Result<Vec<u8>, Error> {
    let path = match source {
        Source::Bytes(bytes) => return Ok(bytes.to_vec()),
        Source::File(path) => path,
    };
    let failed = |source| Error::Read { what, path: path.clone(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let reason = format!("larger than {} MiB", limit >> 20);
        return Err(failed(std::io::Error::new(std::io::ErrorKind::FileTooLarge, reason)));
    }
    Ok(bytes)
}
