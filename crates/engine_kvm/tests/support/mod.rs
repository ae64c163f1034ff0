//! What stands behind guests that need no machine.

use std::sync::Mutex;

use engine::{Bus, BusResult, MsrResult, NoDevices};

/// The port that ends a run.
pub const END: u16 = 0x81;

/// A bus that notes what is stored, and has nothing but a port that ends the run.
#[derive(Default)]
pub struct Noting(pub Mutex<Vec<(u64, Vec<u8>)>>);

impl Bus for Noting {
    fn port_read(&self, vcpu: u32, port: u16, data: &mut [u8]) -> BusResult {
        NoDevices.port_read(vcpu, port, data)
    }
    fn port_write(&self, _: u32, port: u16, _: &[u8]) -> BusResult {
        if port == END { BusResult::Stop } else { BusResult::Done }
    }
    fn mmio_read(&self, vcpu: u32, gpa: u64, data: &mut [u8]) -> BusResult {
        NoDevices.mmio_read(vcpu, gpa, data)
    }
    fn mmio_write(&self, _: u32, gpa: u64, data: &[u8]) -> BusResult {
        self.0.lock().unwrap().push((gpa, data.to_vec()));
        BusResult::Done
    }
    fn msr_read(&self, vcpu: u32, index: u32) -> MsrResult {
        NoDevices.msr_read(vcpu, index)
    }
    fn msr_write(&self, vcpu: u32, index: u32, value: u64) -> MsrResult {
        NoDevices.msr_write(vcpu, index, value)
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
