//! Memory balloon (virtio 1.2, section 5.5): the guest says which of its memory it does not use, and the host takes it back.
//!
//! What idle guests are for is free page reporting (5.5.6.7): the driver hands over free pages, tells nobody else of them until it
//! has the answer, and takes them when it likes; the contents are gone then. So nothing is ever asked of the guest: it is never
//! told to inflate the balloon. One that does all the same loses the pages, as it wants to.
//!
//! Done on the notifying vCPU: giving memory back waits for nothing.
//!
//! Absent: a target size, statistics of the guest, free page hints, page poisoning (a driver that must find its pattern in
//! free pages does not report them).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memory::{GuestRam, PAGE_SIZE};
use state::Section;

use super::{Chain, DeviceType, QueueProgress, Signals, VirtioDevice, Virtqueue, read_config_bytes};

const KIND: &str = "virtio-balloon";
const VERSION: u32 = 1;

/// `VIRTIO_BALLOON_F_REPORTING` (5.5.3).
const FREE_PAGE_REPORTING: u64 = 1 << 5;

/// Queues. Without statistics and hints Linux numbers the third so (5.5.2 has numbers with gaps, which no driver uses).
const INFLATE: usize = 0;
#[cfg(test)]
const DEFLATE: usize = 1;
const REPORTING: usize = 2;

/// `num_pages` (what the host wants), `actual` (what the guest gave), both 32 bits, in pages of 4 KiB.
const CONFIG_BYTES: usize = 8;
/// Offset of `actual`.
const ACTUAL: u64 = 4;

/// Rounds of the ring served per notification, as for any device that works on a vCPU.
const MAX_ROUNDS: u32 = 8;
/// Page numbers in one request: drivers send 256. Attack: a request that keeps a vCPU for long.
const MAX_PAGES: usize = 1024;

/// How much memory a guest has given back, for whoever wants to know.
#[derive(Clone, Debug, Default)]
pub struct BalloonHandle(Arc<AtomicU64>);

impl BalloonHandle {
    /// Bytes since the machine was made; a page that was used again and given back again counts twice.
    pub fn returned_bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The device.
pub struct Balloon {
    // Glue.
    ram: Arc<GuestRam>,
    signals: Option<Arc<Signals>>,
    queues: [Option<Virtqueue>; 3],
    // Bookkeeping.
    returned: BalloonHandle,
    // Saved.
    /// What the driver says it gave, in pages.
    actual: u32,
}

impl Balloon {
    /// A balloon for `ram`.
    pub fn new(ram: Arc<GuestRam>) -> (Self, BalloonHandle) {
        let returned = BalloonHandle::default();
        let handle = returned.clone();
        (Self { ram, signals: None, queues: [const { None }; 3], returned, actual: 0 }, handle)
    }

    fn serve(&mut self, index: usize) {
        let Some(mut queue) = self.queues.get_mut(index).and_then(Option::take) else { return };
        for _ in 0..u32::from(queue.size()) * MAX_ROUNDS {
            let Some(mut chain) = queue.pop() else {
                if queue.enable_notifications() {
                    continue;
                }
                break;
            };
            match index {
                REPORTING => self.reported(&chain),
                INFLATE => self.inflated(&mut chain),
                // DEFLATE: the guest takes them back, and finds what the host has there.
                _ => {}
            }
            queue.complete(&chain, 0);
        }
        queue.signal();
        self.queues[index] = Some(queue);
    }

    /// The buffers of the request are the free memory itself.
    fn reported(&self, chain: &Chain) {
        for (gpa, len) in chain.writable_ranges() {
            self.give_back(gpa, len as u64);
        }
    }

    /// The request is a list of page numbers, 32 bits each.
    fn inflated(&self, chain: &mut Chain) {
        for _ in 0..MAX_PAGES {
            let Some(number) = chain.read_array::<4>() else { return };
            let gpa = u64::from(u32::from_le_bytes(number)) * PAGE_SIZE as u64;
            self.give_back(gpa, PAGE_SIZE as u64);
        }
    }

    /// Memory that is no RAM, or no whole page, stays as it is.
    fn give_back(&self, gpa: u64, len: u64) {
        self.returned.0.fetch_add(self.ram.discard(gpa, len), Ordering::Relaxed);
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64, 64]
    }

    fn features(&self) -> u64 {
        FREE_PAGE_REPORTING
    }

    fn attach(&mut self, signals: Arc<Signals>) {
        self.signals = Some(signals);
    }

    fn accept_features(&mut self, _features: u64) {}

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_BYTES];
        config[ACTUAL as usize..].copy_from_slice(&self.actual.to_le_bytes());
        read_config_bytes(&config, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if offset == ACTUAL
            && let Ok(actual) = data.try_into()
        {
            self.actual = u32::from_le_bytes(actual);
        }
    }

    fn start_queue(&mut self, index: usize, queue: Virtqueue) {
        if let Some(place) = self.queues.get_mut(index) {
            *place = Some(queue);
            self.serve(index);
        }
    }

    fn stop_queue(&mut self, index: usize) -> Option<QueueProgress> {
        self.queues.get_mut(index)?.take().map(Virtqueue::stop)
    }

    fn notify(&mut self, index: usize) {
        self.serve(index);
    }

    fn reset(&mut self) {
        self.actual = 0;
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { ram: _, signals: _, queues: _, returned: _, actual } = self;
        Section::encode(KIND, VERSION, actual)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        self.actual = section.decode(KIND, VERSION)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    /// A balloon on memory that was all written to.
    fn rig() -> (Rig, BalloonHandle, Arc<GuestRam>) {
        let ram = Arc::new(GuestRam::new(&[(0, 4 << 20)]).unwrap());
        let (balloon, handle) = Balloon::new(ram.clone());
        let mut rig = Rig::with_ram(Box::new(balloon), ram.clone());
        rig.bring_up(u64::MAX);
        (rig, handle, ram)
    }

    #[test]
    fn reported_memory_is_given_back_and_its_neighbours_are_not() {
        let (mut rig, handle, ram) = rig();
        ram.write(DATA, &[7; 0x4000]).unwrap();
        // A page and a half: the half is somebody else's too.
        assert_eq!(rig.request(REPORTING, &[(DATA + 0x1000, 0x1800, WRITE)]), 0);
        assert_eq!(rig.bytes(DATA, 0x1000), [7; 0x1000]);
        assert_eq!(rig.bytes(DATA + 0x1000, 0x1000), [0; 0x1000]);
        assert_eq!(rig.bytes(DATA + 0x2000, 0x2000), [7; 0x2000]);
        assert_eq!(handle.returned_bytes(), 0x1000);
        // Memory that the device may only read was not handed over.
        assert_eq!(rig.request(REPORTING, &[(DATA + 0x2000, 0x1000, 0)]), 0);
        assert_eq!(rig.bytes(DATA + 0x2000, 0x1000), [7; 0x1000]);
        assert!(!rig.is_broken());
    }

    #[test]
    fn a_list_of_pages_may_hold_nonsense() {
        let (mut rig, handle, ram) = rig();
        ram.write(DATA, &[7; 0x3000]).unwrap();
        let page = (DATA / 0x1000) as u32;
        let list: Vec<u8> = [page + 1, u32::MAX, 0x10_0000, page + 1]
            .iter()
            .flat_map(|number| number.to_le_bytes())
            .collect();
        ram.write(DATA + 0x4000, &list).unwrap();
        // The last number is cut off.
        assert_eq!(rig.request(INFLATE, &[(DATA + 0x4000, list.len() as u32 - 1, 0)]), 0);
        assert_eq!(rig.bytes(DATA, 0x1000), [7; 0x1000]);
        assert_eq!(rig.bytes(DATA + 0x1000, 0x1000), [0; 0x1000]);
        assert_eq!(handle.returned_bytes(), 0x1000);
        assert_eq!(rig.request(DEFLATE, &[(DATA + 0x4000, 8, 0)]), 0);
        assert!(!rig.is_broken());
    }

    #[test]
    fn what_the_driver_says_is_kept_and_nothing_is_asked_of_it() {
        let (mut balloon, _) = Balloon::new(Arc::new(GuestRam::new(&[(0, 0x1000)]).unwrap()));
        balloon.write_config(ACTUAL, &5u32.to_le_bytes());
        balloon.write_config(0, &9u32.to_le_bytes());
        balloon.write_config(ACTUAL, &[1]);
        let section = balloon.save().unwrap();
        let (mut other, _) = Balloon::new(Arc::new(GuestRam::new(&[(0, 0x1000)]).unwrap()));
        other.restore(&section).unwrap();
        let mut config = [0xff; 12];
        other.read_config(0, &mut config);
        assert_eq!(config, [0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    }
}
