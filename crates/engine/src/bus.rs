//! The way from an engine to whatever is not RAM: ports, MMIO, MSRs of devices, interrupt acknowledgement.

/// What became of a port or MMIO access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusResult {
    /// Done; for reads the buffer holds the value (all ones where nothing answers, as on hardware).
    Done,
    /// Done, and the engine should leave `run` with [`crate::Exit::Kicked`] at the next instruction boundary
    /// (a reset, power-off or pause was asked for).
    Stop,
}

/// What became of an MSR access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MsrResult {
    /// Written, or read with this value.
    Done(u64),
    /// Nothing here knows this MSR, or the value is not allowed: the guest gets #GP(0).
    Fault,
}

/// What engines call inline, on the vCPU's thread, without holding any lock of their own. `vcpu` is the index
/// of the calling vCPU. Buffers are 1, 2, 4 or 8 bytes, little endian; wider guest accesses arrive in pieces.
pub trait Bus: Send + Sync {
    /// IN.
    fn port_read(&self, vcpu: u32, port: u16, data: &mut [u8]) -> BusResult;
    /// OUT.
    fn port_write(&self, vcpu: u32, port: u16, data: &[u8]) -> BusResult;
    /// Load from a guest physical address that is not RAM.
    fn mmio_read(&self, vcpu: u32, gpa: u64, data: &mut [u8]) -> BusResult;
    /// Store to a guest physical address that is not RAM.
    fn mmio_write(&self, vcpu: u32, gpa: u64, data: &[u8]) -> BusResult;
    /// RDMSR of an MSR that is not in `arch::x86::state::Msrs`: APIC, kvm-clock and unknown ones.
    fn msr_read(&self, vcpu: u32, index: u32) -> MsrResult;
    /// WRMSR of such an MSR.
    fn msr_write(&self, vcpu: u32, index: u32, value: u64) -> MsrResult;
    /// The guest wrote the TSC of `vcpu` or its IA32_TSC_ADJUST: from now on it is the host's plus `offset`.
    /// Nothing to do for a bus without clocks.
    fn tsc_changed(&self, _vcpu: u32, _offset: u64) {}
    /// Whether [`Bus::acknowledge_interrupt`] would return a vector now.
    fn interrupt_pending(&self, vcpu: u32) -> bool;
    /// Takes the highest-priority deliverable interrupt (local APIC, else PIC) and marks it in service.
    fn acknowledge_interrupt(&self, vcpu: u32) -> Option<u8>;
    /// A local APIC that is the engine's own ([`crate::LocalApics`]) ended a level-triggered interrupt of `vector`.
    /// Nothing to do for a bus without I/O APIC.
    fn end_of_interrupt(&self, _vector: u8) {}
    /// CR8: the local APIC's task priority, bits 7..=4 of the TPR.
    fn task_priority(&self, vcpu: u32) -> u8;
    /// Writes CR8 (0..=15).
    fn set_task_priority(&self, vcpu: u32, priority: u8);
    /// VMCALL/VMMCALL by the KVM convention: number in RAX, arguments in RBX, RCX, RDX, RSI; returns RAX.
    fn hypercall(&self, vcpu: u32, number: u64, arguments: [u64; 4]) -> u64;
}

/// A bus with nothing on it: reads are all ones, writes are lost, no interrupt comes. For engines that are run
/// without a machine: by tests, by fuzz targets, and where code is only looked at.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDevices;

impl Bus for NoDevices {
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
