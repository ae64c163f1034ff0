//! Address decoding: which device answers on which ports and addresses.
//!
//! A [`BusBuilder`] collects devices and their ranges; the [`Bus`] made from it never changes, so that an access
//! takes no lock but that of the device it ends in: ports are looked up in a table, addresses by binary search.
//!
//! What hardware does, and so do we: an access nobody claims reads all ones and writes nothing; one that is not
//! wholly inside one device's range is split into bytes, each going where its own address leads.
//!
//! Lock order: a device's mutex, then interrupt controllers, then local APICs and [`TimerSink`]s. Nothing that
//! is called with a device's mutex held may call the bus.

mod error;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use state::Section;

use crate::device::Device;
use crate::timer::{NO_DEADLINE, TimerId, TimerSink};
pub use error::BusError;

/// A device as the bus holds it. Whoever made it may keep an `Arc` of the concrete type.
pub type SharedDevice = Arc<Mutex<dyn Device>>;

/// Locks a device; one that panicked is used as it is, for the machine is being torn down then.
pub fn lock<T: ?Sized>(device: &Mutex<T>) -> MutexGuard<'_, T> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Names a device on its bus; devices are numbered from 0 in the order they were added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u16);

impl DeviceId {
    /// The number.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// The timer the device's deadline is reported as.
    pub fn timer(self) -> TimerId {
        TimerId(u32::from(self.0))
    }
}

struct Slot {
    device: SharedDevice,
    name: String,
    timer: TimerId,
    timed: bool,
    /// The deadline last told to the sink; read and written under the device's mutex.
    deadline: AtomicU64,
}

struct MmioRange {
    start: u64,
    /// Exclusive.
    end: u64,
    slot: u16,
}

/// Collects devices and ranges.
#[derive(Default)]
pub struct BusBuilder {
    slots: Vec<Slot>,
    ports: Vec<(Range<u32>, u16)>,
    mmio: Vec<MmioRange>,
}

impl BusBuilder {
    /// No devices yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a device, without any range yet.
    ///
    /// # Errors
    /// [`BusError::DuplicateName`], [`BusError::TooMany`].
    pub fn add(&mut self, device: SharedDevice) -> Result<DeviceId, BusError> {
        let (name, timed) = {
            let mut device = lock(&device);
            (device.name().to_owned(), device.as_timed().is_some())
        };
        if self.slots.iter().any(|s| s.name == name) {
            return Err(BusError::DuplicateName { name });
        }
        // Slot numbers are stored plus one in the port table.
        let id = u16::try_from(self.slots.len()).ok().filter(|&id| id < u16::MAX);
        let Some(id) = id else { return Err(BusError::TooMany { name }) };
        self.slots.push(Slot {
            device,
            name,
            timer: DeviceId(id).timer(),
            timed,
            deadline: AtomicU64::new(NO_DEADLINE),
        });
        Ok(DeviceId(id))
    }

    /// Gives ports `first..first + len` to a device. A device may have any number of ranges.
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::Overlap`], [`BusError::NoSuchSide`].
    pub fn claim_ports(&mut self, id: DeviceId, first: u16, len: u32) -> Result<(), BusError> {
        let slot = &self.slots[id.index()];
        let (space, name) = ("ports", slot.name.clone());
        let (start, end) = (u32::from(first), u32::from(first).saturating_add(len));
        if len == 0 || end > 0x1_0000 {
            return Err(BusError::BadRange { space, name, start: start.into(), len: len.into() });
        }
        if lock(&slot.device).as_pio().is_none() {
            return Err(BusError::NoSuchSide { space, name });
        }
        if let Some((_, other)) = self.ports.iter().find(|(r, _)| r.start < end && start < r.end) {
            let other = self.slots[usize::from(*other)].name.clone();
            return Err(BusError::Overlap { space, name, start: start.into(), len: len.into(), other });
        }
        self.ports.push((start..end, id.0));
        Ok(())
    }

    /// Gives guest physical addresses `start..start + len` to a device.
    ///
    /// # Errors
    /// [`BusError::BadRange`], [`BusError::Overlap`], [`BusError::NoSuchSide`].
    pub fn claim_mmio(&mut self, id: DeviceId, start: u64, len: u64) -> Result<(), BusError> {
        let slot = &self.slots[id.index()];
        let (space, name) = ("memory", slot.name.clone());
        let Some(end) = start.checked_add(len).filter(|_| len > 0) else {
            return Err(BusError::BadRange { space, name, start, len });
        };
        if lock(&slot.device).as_mmio().is_none() {
            return Err(BusError::NoSuchSide { space, name });
        }
        if let Some(other) = self.mmio.iter().find(|r| r.start < end && start < r.end) {
            let other = self.slots[usize::from(other.slot)].name.clone();
            return Err(BusError::Overlap { space, name, start, len, other });
        }
        self.mmio.push(MmioRange { start, end, slot: id.0 });
        Ok(())
    }

    /// The bus; deadlines of timed devices are reported to `timers` under [`DeviceId::timer`].
    pub fn build(mut self, timers: Arc<dyn TimerSink>) -> Bus {
        self.mmio.sort_by_key(|r| r.start);
        // Zeroed memory is not touched until used, so the table costs a few pages only.
        let mut ports = vec![0u16; 0x1_0000];
        for (range, slot) in self.ports {
            ports[range.start as usize..range.end as usize].fill(slot + 1);
        }
        Bus { slots: self.slots, ports, mmio: self.mmio, timers, unclaimed: AtomicU64::new(0) }
    }
}

/// The devices of a machine and the ranges they answer on. Any thread may access it.
pub struct Bus {
    slots: Vec<Slot>,
    /// For each port 0 or the slot's number plus one.
    ports: Vec<u16>,
    /// Sorted, without overlap.
    mmio: Vec<MmioRange>,
    timers: Arc<dyn TimerSink>,
    unclaimed: AtomicU64,
}

impl Bus {
    /// IN: fills `data` (1, 2 or 4 bytes).
    pub fn port_read(&self, port: u16, data: &mut [u8]) {
        match self.port_slot(port, data.len()) {
            Some(slot) => slot.with(&*self.timers, |d| match d.as_pio() {
                Some(pio) => pio.port_read(port, data),
                None => data.fill(0xff),
            }),
            None if data.len() > 1 && self.is_any_port_claimed(port, data.len()) => {
                for (i, byte) in data.iter_mut().enumerate() {
                    match u16::try_from(usize::from(port) + i) {
                        Ok(port) => self.port_read(port, std::slice::from_mut(byte)),
                        Err(_) => *byte = 0xff,
                    }
                }
            }
            None => {
                data.fill(0xff);
                self.note_unclaimed("port read", port.into(), data.len());
            }
        }
    }

    /// OUT of `data` (1, 2 or 4 bytes).
    pub fn port_write(&self, port: u16, data: &[u8]) {
        match self.port_slot(port, data.len()) {
            Some(slot) => slot.with(&*self.timers, |d| {
                if let Some(pio) = d.as_pio() {
                    pio.port_write(port, data);
                }
            }),
            None if data.len() > 1 && self.is_any_port_claimed(port, data.len()) => {
                for (i, byte) in data.iter().enumerate() {
                    if let Ok(port) = u16::try_from(usize::from(port) + i) {
                        self.port_write(port, std::slice::from_ref(byte));
                    }
                }
            }
            None => self.note_unclaimed("port write", port.into(), data.len()),
        }
    }

    /// A load from device memory: fills `data` (1, 2, 4 or 8 bytes).
    pub fn mmio_read(&self, gpa: u64, data: &mut [u8]) {
        match self.mmio_range(gpa, data.len()) {
            Found::Whole(range) => {
                self.slots[usize::from(range.slot)].with(&*self.timers, |d| match d.as_mmio() {
                    Some(mmio) => mmio.mmio_read(gpa - range.start, data),
                    None => data.fill(0xff),
                });
            }
            Found::Partly => {
                for (i, byte) in data.iter_mut().enumerate() {
                    match gpa.checked_add(i as u64) {
                        Some(gpa) => self.mmio_read(gpa, std::slice::from_mut(byte)),
                        None => *byte = 0xff,
                    }
                }
            }
            Found::Nothing => {
                data.fill(0xff);
                self.note_unclaimed("read", gpa, data.len());
            }
        }
    }

    /// A store to device memory of `data` (1, 2, 4 or 8 bytes).
    pub fn mmio_write(&self, gpa: u64, data: &[u8]) {
        match self.mmio_range(gpa, data.len()) {
            Found::Whole(range) => {
                self.slots[usize::from(range.slot)].with(&*self.timers, |d| {
                    if let Some(mmio) = d.as_mmio() {
                        mmio.mmio_write(gpa - range.start, data);
                    }
                });
            }
            Found::Partly => {
                for (i, byte) in data.iter().enumerate() {
                    if let Some(gpa) = gpa.checked_add(i as u64) {
                        self.mmio_write(gpa, std::slice::from_ref(byte));
                    }
                }
            }
            Found::Nothing => self.note_unclaimed("write", gpa, data.len()),
        }
    }

    /// Tells the device behind `timer` that the clock shows `now`. Timers that are no device's are ignored.
    pub fn advance(&self, timer: TimerId, now: u64) {
        let Some(slot) = self.slots.get(timer.0 as usize) else { return };
        let mut device = lock(&slot.device);
        if let Some(timed) = device.as_timed() {
            timed.advance(now);
        }
        // The queue forgot the deadline when it expired, so report it even if it is the same again.
        slot.report(&mut *device, &*self.timers, Report::Always);
    }

    /// Reports the deadline of a device that was changed by another way than an access through the bus.
    pub fn deadline_changed(&self, id: DeviceId) {
        if let Some(slot) = self.slots.get(id.index()) {
            slot.report(&mut *lock(&slot.device), &*self.timers, Report::Always);
        }
    }

    /// How many devices there are: timers from this number on are free for others, e.g. local APICs.
    pub fn device_count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The devices, in the order they were added.
    pub fn devices(&self) -> impl Iterator<Item = (DeviceId, &SharedDevice)> {
        self.slots.iter().zip(0..).map(|(s, i)| (DeviceId(i), &s.device))
    }

    /// How many accesses nobody answered.
    pub fn unclaimed_accesses(&self) -> u64 {
        self.unclaimed.load(Ordering::Relaxed)
    }

    /// Resets every device. Only while every vCPU is stopped.
    pub fn reset(&self) {
        for slot in &self.slots {
            let mut device = lock(&slot.device);
            device.reset();
            slot.report(&mut *device, &*self.timers, Report::Always);
        }
    }

    /// Every device's name and state. Only while every vCPU is stopped.
    ///
    /// # Errors
    /// [`BusError::State`].
    pub fn save(&self) -> Result<Vec<(String, Section)>, BusError> {
        let save = |slot: &Slot| match lock(&slot.device).save() {
            Ok(section) => Ok((slot.name.clone(), section)),
            Err(source) => Err(BusError::State { act: "save", name: slot.name.clone(), source }),
        };
        self.slots.iter().map(save).collect()
    }

    /// Gives every device the section `take` returns for its name. Only while every vCPU is stopped. After an
    /// error some devices have their old state: the machine is not to be run.
    ///
    /// # Errors
    /// [`BusError::MissingSection`], [`BusError::State`].
    pub fn restore(&self, mut take: impl FnMut(&str) -> Option<Section>) -> Result<(), BusError> {
        for slot in &self.slots {
            let name = || slot.name.clone();
            let section = take(&slot.name).ok_or_else(|| BusError::MissingSection { name: name() })?;
            let mut device = lock(&slot.device);
            device.restore(&section).map_err(|source| BusError::State {
                act: "restore",
                name: name(),
                source,
            })?;
            slot.report(&mut *device, &*self.timers, Report::Always);
        }
        Ok(())
    }

    /// The slot that has the whole access.
    #[inline]
    fn port_slot(&self, port: u16, len: usize) -> Option<&Slot> {
        let first = self.ports[usize::from(port)];
        let last = if len <= 1 { first } else { *self.ports.get(usize::from(port) + len - 1)? };
        // Ends in the same device: nothing else can lie between for chips of consecutive ports; a device
        // with a hole of its own sees the access whole.
        (first != 0 && first == last).then(|| &self.slots[usize::from(first - 1)])
    }

    fn is_any_port_claimed(&self, port: u16, len: usize) -> bool {
        let end = (usize::from(port) + len).min(self.ports.len());
        self.ports[usize::from(port)..end].iter().any(|&slot| slot != 0)
    }

    #[inline]
    fn mmio_range(&self, gpa: u64, len: usize) -> Found<'_> {
        let last = gpa.saturating_add((len as u64).saturating_sub(1));
        // The first range that ends after the access begins.
        let i = self.mmio.partition_point(|r| r.end <= gpa);
        match self.mmio.get(i) {
            Some(r) if r.start <= gpa && last < r.end => Found::Whole(r),
            Some(r) if r.start <= last && len > 1 => Found::Partly,
            _ => Found::Nothing,
        }
    }

    #[cold]
    fn note_unclaimed(&self, act: &str, address: u64, len: usize) {
        // Guests probe; one line per power of two is enough to see that, and cannot fill a disk.
        let count = self.unclaimed.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::debug!(act, address = format_args!("{address:#x}"), len, count, "nothing answers");
        }
    }
}

enum Found<'a> {
    Whole(&'a MmioRange),
    Partly,
    Nothing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Report {
    IfChanged,
    Always,
}

impl Slot {
    #[inline]
    fn with(&self, timers: &dyn TimerSink, access: impl FnOnce(&mut dyn Device)) {
        let mut device = lock(&self.device);
        access(&mut *device);
        if self.timed {
            self.report(&mut *device, timers, Report::IfChanged);
        }
    }

    fn report(&self, device: &mut dyn Device, timers: &dyn TimerSink, when: Report) {
        if !self.timed {
            return;
        }
        let deadline = device.as_timed().and_then(|t| t.next_deadline());
        let value = deadline.unwrap_or(NO_DEADLINE);
        let before = self.deadline.swap(value, Ordering::Relaxed);
        if before != value || when == Report::Always {
            timers.deadline_changed(self.timer, deadline);
        }
    }
}

#[cfg(test)]
mod tests;
