//! Every chip of a board on a bus, joined as a machine joins them, with a clock that the fuzzer moves.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use devices::chipset::lapic::{GuestTsc, VcpuWake};
use devices::chipset::{ApicBus, BoardPorts, I8042, InterruptRouter, LapicGlue, Pit, PowerManagement, Rtc};
use devices::serial::{ConsoleSink, Uart16550};
use devices::{
    Bus, BusBuilder, Clock, InterruptController, IrqLine, PowerEvent, PowerSink, SharedDevice, TimerId,
    TimerSink,
};

use crate::Bytes;

const VCPUS: u32 = 2;
const IOAPIC: u64 = 0xfec0_0000;
/// First port, number of ports, and the chip that has them.
const PORTS: [(u16, u8, &str); 15] = [
    (0x20, 2, "pic"),
    (0x40, 4, "pit"),
    (0x60, 1, "i8042"),
    (0x61, 1, "pit"),
    (0x64, 1, "i8042"),
    (0x70, 2, "rtc"),
    (0x80, 1, "board-ports"),
    (0x92, 1, "board-ports"),
    (0xa0, 2, "pic"),
    (0x3f8, 8, "serial0"),
    (0x4d0, 2, "pic"),
    (0x600, 12, "acpi-pm"),
    (0xcf8, 4, "acpi-pm"),
    (0x1234, 1, ""),
    (0xfffc, 4, ""),
];

/// What the chips are given: a clock, a TSC of 2 GHz, and ears for wakes, timers and power events.
#[derive(Debug, Default)]
struct Surroundings {
    now: AtomicU64,
}

impl Clock for Surroundings {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    fn wall_clock(&self) -> u64 {
        self.now().wrapping_add(1_700_000_000_000_000_000)
    }
}

impl GuestTsc for Surroundings {
    fn tsc(&self, _vcpu: u32) -> u64 {
        self.now().wrapping_mul(2)
    }

    fn khz(&self) -> u32 {
        2_000_000
    }
}

impl VcpuWake for Surroundings {
    fn interrupt(&self, _vcpu: u32) {}

    fn event(&self, _vcpu: u32) {}
}

impl TimerSink for Surroundings {
    fn deadline_changed(&self, _timer: TimerId, _deadline: Option<u64>) {}
}

impl PowerSink for Surroundings {
    fn request(&self, _event: PowerEvent) {}
}

/// Takes half of what it is given, so that the rest waits.
struct SlowConsole;

impl ConsoleSink for SlowConsole {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len() / 2
    }
}

/// A board of two processors.
pub struct Board {
    surroundings: Arc<Surroundings>,
    /// The interrupt chips.
    pub router: Arc<InterruptRouter>,
    /// All chips but the local APICs.
    pub bus: Bus,
}

impl Default for Board {
    fn default() -> Self {
        Self::new()
    }
}

impl Board {
    /// A board after power-up.
    #[must_use]
    pub fn new() -> Self {
        let surroundings = Arc::new(Surroundings::default());
        let apics = ApicBus::new(
            VCPUS,
            LapicGlue {
                clock: surroundings.clone(),
                tsc: surroundings.clone(),
                wake: surroundings.clone(),
                timers: surroundings.clone(),
                first_timer: TimerId(0),
                timer_hz: 1_000_000_000,
                physical_bits: 40,
            },
        );
        let router = Arc::new(InterruptRouter::new(Arc::new(apics)));
        let mut builder = BusBuilder::new();
        for device in chips(&surroundings, &router) {
            let name = devices::bus::lock(&device).name().to_owned();
            let id = builder.add(device).expect("every name is there once");
            if name == "ioapic" {
                builder.claim_mmio(id, IOAPIC, 0x1000).expect("nobody else is there");
            }
            for (first, count, _) in PORTS.iter().filter(|(_, _, owner)| *owner == name) {
                builder.claim_ports(id, *first, u32::from(*count)).expect("nobody else is there");
            }
        }
        Self { bus: builder.build(surroundings.clone()), surroundings, router }
    }

    /// One access, line change, or step of time, as `input` says.
    pub fn act(&self, input: &mut Bytes<'_>) {
        let apics = self.router.apics();
        let choice = input.u8();
        let vcpu = u32::from(choice >> 7);
        let width = 1usize << (choice >> 5 & 3);
        match choice % 16 {
            0..3 => self.bus.port_read(port(input), &mut [0; 4][..width.min(4)]),
            3..6 => self.bus.port_write(port(input), &input.array::<4>()[..width.min(4)]),
            6 => self.bus.mmio_write(IOAPIC + u64::from(input.u8()), &input.array::<8>()[..width]),
            7 => self.bus.mmio_read(IOAPIC + u64::from(input.u16()), &mut [0; 8][..width]),
            8 => apics.mmio_write(vcpu, u64::from(input.u8()) * 16, &input.array::<4>()),
            9 => apics.mmio_write(vcpu, u64::from(input.u16()), &input.array::<8>()[..width]),
            10 => apics.mmio_read(vcpu, u64::from(input.u16()), &mut [0; 8][..width]),
            11 => {
                let _ = apics.msr_write(vcpu, msr(input), input.u64());
            }
            12 => {
                let _ = apics.msr_read(vcpu, msr(input));
            }
            13 => {
                let line = input.u8();
                self.router.set_line(u32::from(line & 31), line >> 7 != 0);
            }
            14 => {
                let _ = self.router.is_pending(vcpu);
                let _ = self.router.acknowledge(vcpu);
                let lapic = apics.lapic(vcpu);
                let _ = lapic.take_events();
                assert!(lapic.pending().is_none_or(|vector| u32::from(vector >> 4) > lapic.ppr() >> 4));
            }
            _ => self.pass(u64::from(input.u8()) << (input.u8() % 48)),
        }
    }

    /// Lets time pass, in nanoseconds.
    pub fn pass(&self, ns: u64) {
        // No machine runs for centuries; the clock of one is the host's.
        let now = self.surroundings.now().saturating_add(ns).min(1 << 62);
        self.surroundings.now.store(now, Ordering::Relaxed);
        for timer in 0..self.bus.device_count() {
            self.bus.advance(TimerId(timer), now);
        }
        for lapic in self.router.apics().lapics() {
            lapic.advance(now);
        }
    }
}

fn chips(around: &Arc<Surroundings>, router: &Arc<InterruptRouter>) -> Vec<SharedDevice> {
    let line = |gsi| IrqLine::new(router.clone(), gsi);
    let uart = Uart16550::new("serial0", line(4), Box::new(SlowConsole), around.clone());
    vec![
        router.pic().clone(),
        router.ioapic().clone(),
        Arc::new(Mutex::new(Pit::new(around.clone(), line(0)))),
        Arc::new(Mutex::new(Rtc::new(around.clone(), line(8)))),
        Arc::new(Mutex::new(I8042::new(line(1), around.clone()))),
        Arc::new(Mutex::new(PowerManagement::new(around.clone(), line(9), around.clone()))),
        Arc::new(Mutex::new(BoardPorts::new(around.clone()))),
        Arc::new(Mutex::new(uart)),
    ]
}

fn port(input: &mut Bytes<'_>) -> u16 {
    let (first, count, _) = input.pick(&PORTS);
    first + u16::from(input.u8() % count)
}

fn msr(input: &mut Bytes<'_>) -> u32 {
    match input.u8() {
        index @ 0..0x40 => 0x800 + u32::from(index),
        0x40..0x80 => 0x1b,
        0x80..0xc0 => 0x6e0,
        _ => input.u32(),
    }
}
