//! What the vCPUs of one machine share inside the engine: the lock behind accesses that no single host
//! instruction can make atomic, and the shoot-down of write permissions when a page comes to hold code.
//!
//! The shoot-down: a vCPU about to decode from a page that held no code posts a request to every vCPU that
//! runs and waits until each has dropped its write entries or left `run`. One that enters later drops them
//! before its first instruction. While it waits, a vCPU serves requests of others, so two can wait for each
//! other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use engine::{Request, VcpuSignal};

use super::turns::Turns;

#[derive(Default)]
struct Slot {
    signal: OnceLock<Arc<VcpuSignal>>,
    running: AtomicBool,
    revocation: AtomicBool,
    /// Whether `changed` says anything.
    code_changed: AtomicBool,
    changed: Mutex<Changed>,
}

/// The pages, by the addresses of what is known of them, in which code was overwritten.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Changed {
    /// None.
    #[default]
    Nothing,
    /// These.
    Pages(Vec<usize>),
    /// More than are worth a list.
    Many,
}

impl Changed {
    const MAX_PAGES: usize = 32;

    fn add(&mut self, page: usize) {
        match self {
            Self::Nothing => *self = Self::Pages(vec![page]),
            Self::Pages(pages) if pages.contains(&page) => {}
            Self::Pages(pages) if pages.len() < Self::MAX_PAGES => pages.push(page),
            Self::Pages(_) | Self::Many => *self = Self::Many,
        }
    }
}

impl Slot {
    /// Asks the vCPU for its attention, unless it is between two calls of `run`.
    fn post_if_running(&self) {
        if let Some(signal) = self.signal.get()
            && self.running.load(Ordering::SeqCst)
        {
            signal.post(Request::ENGINE);
        }
    }

    fn code_changed(&self, page: usize) {
        self.changed.lock().unwrap_or_else(PoisonError::into_inner).add(page);
        self.code_changed.store(true, Ordering::SeqCst);
        self.post_if_running();
    }
}

/// Shared by all vCPUs of a machine.
pub struct Shared {
    /// Held for locked accesses that cross a page or reach a device. Taken with no other lock held; device
    /// locks are taken inside it.
    pub split_lock: Mutex<()>,
    /// For vCPUs that execute one at a time. Whoever has the turn may wait for others' answers, but for no lock of theirs.
    pub(super) turns: Turns,
    slots: Box<[Slot]>,
}

impl Shared {
    /// For a machine of `count` vCPUs.
    pub fn new(count: u32) -> Self {
        let slots = (0..count).map(|_| Slot::default()).collect();
        Self { split_lock: Mutex::new(()), turns: Turns::default(), slots }
    }

    /// Whether there is a vCPU number `index`.
    pub fn has(&self, index: u32) -> bool {
        (index as usize) < self.slots.len()
    }

    /// Makes vCPU `index` reachable.
    pub fn register(&self, index: u32, signal: Arc<VcpuSignal>) {
        assert!(self.slots[index as usize].signal.set(signal).is_ok(), "each vCPU is made once");
    }

    /// vCPU `index` begins to run guest code; what it was asked for meanwhile is posted to it again.
    pub fn enter(&self, index: u32) {
        let slot = &self.slots[index as usize];
        slot.running.store(true, Ordering::SeqCst);
        if (slot.revocation.load(Ordering::SeqCst) || slot.code_changed.load(Ordering::SeqCst))
            && let Some(signal) = slot.signal.get()
        {
            signal.post(Request::ENGINE);
        }
    }

    /// vCPU `index` stopped running guest code.
    pub fn leave(&self, index: u32) {
        self.slots[index as usize].running.store(false, Ordering::SeqCst);
    }

    /// Asks all running vCPUs but `from` to drop their write entries.
    pub fn request_revocation(&self, from: u32) {
        for (_, slot) in self.others(from) {
            slot.revocation.store(true, Ordering::SeqCst);
            slot.post_if_running();
        }
    }

    /// Code was overwritten by `from` in the page that `page` is the address of what is known of: the others leave what they
    /// run of it at their next boundary. One that does not run learns it before it does again.
    pub fn code_changed(&self, from: u32, page: usize) {
        self.others(from).for_each(|(_, slot)| slot.code_changed(page));
    }

    /// Code was overwritten by a device: as [`Self::code_changed`], for all.
    pub fn code_changed_by_device(&self, page: usize) {
        self.slots.iter().for_each(|slot| slot.code_changed(page));
    }

    /// In which pages code was overwritten since vCPU `index` asked last.
    pub fn take_changed_code(&self, index: u32) -> Changed {
        let slot = &self.slots[index as usize];
        if !slot.code_changed.swap(false, Ordering::SeqCst) {
            return Changed::Nothing;
        }
        std::mem::take(&mut *slot.changed.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether no running vCPU but `from` has yet to answer.
    pub fn is_revoked(&self, from: u32) -> bool {
        self.others(from)
            .all(|(_, slot)| !slot.revocation.load(Ordering::SeqCst) || !slot.running.load(Ordering::SeqCst))
    }

    /// Whether vCPU `index` is asked to drop its write entries.
    pub fn is_asked_to_revoke(&self, index: u32) -> bool {
        self.slots[index as usize].revocation.load(Ordering::SeqCst)
    }

    /// vCPU `index` has dropped them.
    pub fn acknowledge(&self, index: u32) {
        self.slots[index as usize].revocation.store(false, Ordering::SeqCst);
    }

    fn others(&self, from: u32) -> impl Iterator<Item = (usize, &Slot)> {
        self.slots.iter().enumerate().filter(move |(i, _)| *i != from as usize)
    }
}
