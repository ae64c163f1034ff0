//! What a machine is made of, as data: what flags and API calls are turned into, and what a snapshot keeps.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arch::x86::cpuid::CpuModel;
pub use devices::rate::{Bucket, Limits, MAX_TOKENS};
use devices::virtio::net::MAX_PAIRS;
use serde::{Deserialize, Serialize};

use crate::Error;

/// Most vCPUs a machine can have: xAPIC ids are 8 bits wide and 0xff means everybody; the rest is head-room.
pub const MAX_CPUS: u32 = 64;
/// Least memory a machine can have: below it no supported kernel gets as far as an error message.
pub const MIN_MEMORY_BYTES: u64 = 16 << 20;
/// Most memory a machine can have; ends well below the 46 bits of physical address the CPU models offer.
pub const MAX_MEMORY_BYTES: u64 = 1 << 40;
/// Most disks, and most network ports, a machine can have.
pub const MAX_DEVICES: usize = 8;

/// A machine, described. Everything live (open files, terminals, streams) is in [`crate::Backends`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineConfig {
    /// How many vCPUs, 1..=[`MAX_CPUS`].
    pub cpus: u32,
    /// Bytes of guest memory; a multiple of 4 KiB in [`MIN_MEMORY_BYTES`]..=[`MAX_MEMORY_BYTES`].
    pub memory_bytes: u64,
    /// Name of an [`arch::x86::cpuid::CpuModel`].
    pub cpu_model: String,
    /// What is started.
    pub boot: BootConfig,
    /// Disks, in the order the guest sees them (`vda`, `vdb`, …).
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// Network ports, in the order the guest sees them.
    #[serde(default)]
    pub net: Vec<NetConfig>,
    /// The socket device between host and guest; `strata run` needs it.
    #[serde(default)]
    pub vsock: Option<VsockConfig>,
    /// Which consoles the guest has; both end in [`crate::Backends::console`].
    #[serde(default)]
    pub console: ConsoleConfig,
    /// Whether the guest has a source of random numbers (virtio-rng).
    #[serde(default = "yes")]
    pub rng: bool,
    /// Whether the guest is told when it goes on from a saved state (virtual machine generation ID).
    #[serde(default)]
    pub generation_id: bool,
    /// Whether the guest can give back memory that it does not use (virtio-balloon).
    #[serde(default)]
    pub balloon: bool,
    /// Whether the guest can be given folders of the host (virtio-fs).
    #[serde(default)]
    pub folders: bool,
    /// How devices are described to the guest.
    #[serde(default)]
    pub acpi: Acpi,
    /// What a reset the guest asks for does.
    #[serde(default)]
    pub on_reset: OnReset,
}

fn yes() -> bool {
    true
}

/// What is loaded into memory before the first vCPU starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// A kernel image of any kind [`crate::loader`] knows.
    pub kernel: Source,
    /// Pieces of the initial RAM disk, put one after the other on 4-byte boundaries (Linux unpacks a
    /// sequence of archives, each compressed or not).
    #[serde(default)]
    pub initrd: Vec<Source>,
    /// The kernel's command line, before what the board adds for its devices.
    #[serde(default)]
    pub cmdline: String,
    /// How the kernel is entered.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Bytes for the guest: in a file, or made by the owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Read from this file when the machine is built.
    File(PathBuf),
    /// Here they are. Not kept in a serialized configuration.
    #[serde(skip)]
    Bytes(Arc<[u8]>),
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// PVH if the image has the note, else the Linux boot protocol of the image's width.
    #[default]
    Auto,
    /// PVH (Xen's `pvh.html`, 32-bit protected mode without paging).
    Pvh,
    /// Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux64,
}

/// One virtio disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// The disk image or block device.
    pub path: PathBuf,
    /// Whether guest writes are refused.
    #[serde(default)]
    pub read_only: bool,
    /// What the guest reads as the serial number, at most 20 bytes of ASCII.
    #[serde(default)]
    pub serial: String,
    /// What the guest may move at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Limits>,
}

/// One virtio network port. Without a back end the link is down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// The MAC address; bit 0 of the first byte must be clear (no multicast).
    pub mac: [u8; 6],
    /// Queue pairs, of which the guest uses as many as it has vCPUs.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub queue_pairs: u16,
    /// What the guest may receive at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate: Option<Limits>,
    /// What the guest may send at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate: Option<Limits>,
}

impl NetConfig {
    /// A port with address `mac`, one queue pair and no limits.
    pub fn new(mac: [u8; 6]) -> Self {
        Self { mac, queue_pairs: 1, rx_rate: None, tx_rate: None }
    }

    /// The same with a queue pair for each of `cpus`, as far as a card can have them.
    #[must_use]
    pub fn for_cpus(self, cpus: u32) -> Self {
        let queue_pairs = u16::try_from(cpus).unwrap_or(u16::MAX).clamp(1, MAX_PAIRS);
        Self { queue_pairs, ..self }
    }
}

/// What machines have that were saved before there could be more.
fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_one(pairs: &u16) -> bool {
    *pairs == 1
}

/// The vsock device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// The guest's context id, at least 3.
    pub guest_cid: u32,
}

impl Default for VsockConfig {
    fn default() -> Self {
        Self { guest_cid: 3 }
    }
}

/// Which consoles the guest has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleConfig {
    /// A 16550 at port 0x3f8 (`ttyS0`).
    #[default]
    Serial,
    /// A virtio console (`hvc0`), for kernels without a serial driver.
    Virtio,
    /// Both; output of either goes to the same place, input goes to the serial port.
    Both,
}

/// How devices are described to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Acpi {
    /// ACPI tables, unless the kernel was built without ACPI or its command line says `acpi=off`: then that command line
    /// and an MP table.
    #[default]
    Auto,
    /// ACPI tables.
    On,
    /// `virtio_mmio.device=` on the kernel command line, and an MP table.
    Off,
}

/// What a reset the guest asks for does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnReset {
    /// The machine ends with [`crate::MachineEvent::Reset`].
    #[default]
    Stop,
    /// Devices are reset, the kernel is loaded anew, and the machine goes on.
    Restart,
}

impl MachineConfig {
    /// A machine with one vCPU and 256 MiB that starts `kernel`.
    pub fn new(kernel: Source) -> Self {
        Self {
            cpus: 1,
            memory_bytes: 256 << 20,
            cpu_model: "x86-64-v3".to_owned(),
            boot: BootConfig {
                kernel,
                initrd: Vec::new(),
                cmdline: String::new(),
                protocol: Protocol::default(),
            },
            disks: Vec::new(),
            net: Vec::new(),
            vsock: None,
            console: ConsoleConfig::default(),
            rng: true,
            generation_id: false,
            balloon: false,
            folders: false,
            acpi: Acpi::default(),
            on_reset: OnReset::default(),
        }
    }

    /// Checks everything that can be checked without opening a file.
    ///
    /// # Errors
    /// [`Error::Config`] with the field and what is wrong with it.
    pub fn validate(&self) -> Result<(), Error> {
        let fail = |field: &str, reason: String| Err(Error::Config { field: field.to_owned(), reason });
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return fail("cpus", format!("{} is not between 1 and {MAX_CPUS}", self.cpus));
        }
        if !(MIN_MEMORY_BYTES..=MAX_MEMORY_BYTES).contains(&self.memory_bytes) {
            let (least, most) = (MIN_MEMORY_BYTES >> 20, MAX_MEMORY_BYTES >> 20);
            let reason = format!("{} bytes is not between {least} MiB and {most} MiB", self.memory_bytes);
            return fail("memory", reason);
        }
        if !self.memory_bytes.is_multiple_of(memory::PAGE_SIZE as u64) {
            return fail("memory", format!("{} bytes is not a multiple of 4 KiB", self.memory_bytes));
        }
        if CpuModel::named(&self.cpu_model).is_none() {
            return fail("cpu model", format!("there is no {:?}", self.cpu_model));
        }
        self.validate_devices()
    }

    fn validate_devices(&self) -> Result<(), Error> {
        let fail = |field: String, reason: String| Err(Error::Config { field, reason });
        for (field, count) in [("disks", self.disks.len()), ("net", self.net.len())] {
            if count > MAX_DEVICES {
                return fail(field.to_owned(), format!("{count} is more than {MAX_DEVICES}"));
            }
        }
        for (index, disk) in self.disks.iter().enumerate() {
            if disk.serial.len() > 20 || !disk.serial.is_ascii() {
                let reason = format!("serial {:?} is not at most 20 bytes of ASCII", disk.serial);
                return fail(format!("disk {index}"), reason);
            }
            check_rate(disk.rate, &format!("disk {index} rate"))?;
        }
        for (index, port) in self.net.iter().enumerate() {
            if port.mac[0] & 1 != 0 || port.mac == [0; 6] {
                let reason = "the MAC address is multicast or zero".to_owned();
                return fail(format!("net {index}"), reason);
            }
            if !(1..=MAX_PAIRS).contains(&port.queue_pairs) {
                let reason = format!("{} queue pairs are not between 1 and {MAX_PAIRS}", port.queue_pairs);
                return fail(format!("net {index}"), reason);
            }
            check_rate(port.rx_rate, &format!("net {index} rx_rate"))?;
            check_rate(port.tx_rate, &format!("net {index} tx_rate"))?;
        }
        if let Some(vsock) = &self.vsock
            && (vsock.guest_cid < 3 || vsock.guest_cid == u32::MAX)
        {
            return fail("vsock".to_owned(), format!("context id {} is reserved", vsock.guest_cid));
        }
        if self.boot.cmdline.bytes().any(|b| b == 0 || b == b'\n') {
            return fail("cmdline".to_owned(), "it contains a line end or a zero byte".to_owned());
        }
        Ok(())
    }
}

fn check_rate(limits: Option<Limits>, field: &str) -> Result<(), Error> {
    let bad = |reason| Error::Config { field: field.to_owned(), reason };
    limits.map_or(Ok(()), |limits| limits.check()).map_err(bad)
}

impl Source {
    /// The file, if it is one; for messages.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Bytes(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> MachineConfig {
        MachineConfig::new(Source::File("vmlinux".into()))
    }

    fn field_of(change: impl FnOnce(&mut MachineConfig)) -> String {
        let mut config = config();
        change(&mut config);
        match config.validate() {
            Err(Error::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_plain_machine_is_valid() {
        config().validate().unwrap();
    }

    #[test]
    fn each_impossible_value_is_named() {
        assert_eq!(field_of(|c| c.cpus = 0), "cpus");
        assert_eq!(field_of(|c| c.cpus = MAX_CPUS + 1), "cpus");
        assert_eq!(field_of(|c| c.memory_bytes = 4096), "memory");
        assert_eq!(field_of(|c| c.memory_bytes = u64::MAX), "memory");
        assert_eq!(field_of(|c| c.memory_bytes += 1), "memory");
        assert_eq!(field_of(|c| c.boot.cmdline = "a\nb".into()), "cmdline");
        assert_eq!(field_of(|c| c.vsock = Some(VsockConfig { guest_cid: 2 })), "vsock");
        assert_eq!(field_of(|c| c.net.push(NetConfig::new([1, 0, 0, 0, 0, 1]))), "net 0");
        let never = Bucket { size: 1, one_time_burst: 0, refill_time_ms: 0 };
        let rate = Some(Limits { bandwidth: Some(never), ops: None });
        assert_eq!(
            field_of(|c| c.net.push(NetConfig { rx_rate: rate, ..NetConfig::new([2; 6]) })),
            "net 0 rx_rate"
        );
        for queue_pairs in [0, MAX_PAIRS + 1] {
            let card = NetConfig { queue_pairs, ..NetConfig::new([2; 6]) };
            assert_eq!(field_of(|c| c.net.push(card)), "net 0");
        }
        let disk = DiskConfig { path: "d".into(), read_only: false, serial: "x".into(), rate };
        assert_eq!(field_of(|c| c.disks.push(disk.clone())), "disk 0 rate");
        let disk = DiskConfig { serial: "x".repeat(21), ..disk };
        assert_eq!(field_of(|c| c.disks.push(disk.clone())), "disk 0");
        assert_eq!(field_of(|c| c.disks = vec![disk.clone(); MAX_DEVICES + 1]), "disks");
    }

    #[test]
    fn a_configuration_survives_json() {
        let config = config();
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MachineConfig>(&text).unwrap(), config);
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let text = r#"{"cpus":1,"memory_bytes":268435456,"cpu_model":"x86-64-v3",
            "boot":{"kernel":{"file":"k"}},"gpus":1}"#;
        assert!(serde_json::from_str::<MachineConfig>(text).unwrap_err().to_string().contains("gpus"));
    }
}
