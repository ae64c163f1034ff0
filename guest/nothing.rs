//! A bus with nothing on it. Included by tests of engines that need no machine:
//! `#[path = "../../../guest/nothing.rs"] mod nothing;`.

use engine::{Bus, BusResult, MsrResult};

/// Reads are all ones, writes are lost, no interrupt comes.
pub struct Nothing;

impl Bus for Nothing {
    fn port_read(&self, _: u32, _: u16, data: &mut [u8]) -> BusResult {
        data.fill(0xff);
        BusResult::Done
    }
    fn port_write(&self, _: u32, _: u16, _: &[u8]) -> BusResult {
        BusResult::Done
    }
    fn mmio_read(&self, _: u32, _: u64, data: &mut [u8]) -> BusResult {
        data.fill(0xff);
        BusResult::Done
    }
    fn mmio_write(&self, _: u32, _: u64, _: &[u8]) -> BusResult {
        BusResult::Done
    }
    fn msr_read(&self, _: u32, _: u32) -> MsrResult {
        MsrResult::Fault
    }
    fn msr_write(&self, _: u32, _: u32, _: u64) -> MsrResult {
        MsrResult::Fault
    }
    fn interrupt_pending(&self, _: u32) -> bool {
        false
    }
    fn acknowledge_interrupt(&self, _: u32) -> Option<u8> {
        None
    }
    fn task_priority(&self, _: u32) -> u8 {
        0
    }
    fn set_task_priority(&self, _: u32, _: u8) {}
    fn hypercall(&self, _: u32, _: u64, _: [u64; 4]) -> u64 {
        0
    }
}
