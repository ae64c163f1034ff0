//! The life of machines whose vCPUs play scripts instead of executing instructions.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use arch::x86::{Rflags, SegmentRegister};
use engine::Exit;

use super::*;
use crate::testing::{self, FakeEngine, Script, Stage, print};

const LAPIC: u64 = 0xfee0_0000;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;

fn build(cpus: u32, script: Script) -> Machine {
    let mut config = testing::config();
    config.cpus = cpus;
    Machine::build(&config, Backends::default(), &FakeEngine(script)).unwrap()
}

fn lapic_write(stage: &Stage<'_>, register: u64, value: u32) {
    stage.bus.mmio_write(stage.index, LAPIC + register, &value.to_le_bytes());
}

fn reset(stage: &Stage<'_>) -> Option<Exit> {
    stage.bus.port_write(stage.index, 0x92, &[1]);
    Some(Exit::Kicked)
}

#[test]
fn a_machine_starts_pauses_resumes_and_stops() {
    let machine = testing::machine(Script::halt_for_ever());
    assert_eq!(machine.ended(), None);
    machine.start();
    machine.pause();
    let runs = machine.statistics()[0].instructions;
    machine.pause();
    assert_eq!(machine.statistics()[0].instructions, runs);
    machine.resume();
    machine.stop();
    assert_eq!(machine.wait(), MachineEvent::Stopped);
    machine.start();
    machine.pause();
}

#[test]
fn a_machine_that_was_never_started_can_be_dropped() {
    drop(build(4, Script::halt_for_ever()));
}

#[test]
fn a_spinning_vcpu_is_paused_by_a_kick() {
    let machine = testing::machine(Script::new(|_| None));
    machine.start();
    machine.pause();
    drop(machine);
}

#[test]
fn the_first_vcpu_starts_at_the_kernels_pvh_entry() {
    let (sender, states) = channel();
    let sender = Mutex::new(sender);
    let machine = testing::machine(Script::new(move |stage| {
        sender.lock().unwrap().send(stage.state.clone()).unwrap();
        reset(stage)
    }));
    machine.start();
    assert_eq!(machine.wait(), MachineEvent::Reset);
    let state = states.recv().unwrap();
    assert_eq!((state.rip, state.code_bits(), state.is_paging()), (0x10_0000, 32, false));
    assert_eq!(state.gpr[3], 0x6000, "ebx points to the start info");
}

#[test]
fn what_the_guest_was_loaded_from_is_let_go() {
    let initrd: Arc<[u8]> = Arc::from(&b"archive"[..]);
    let held = Arc::downgrade(&initrd);
    let mut config = testing::config();
    config.boot.initrd = vec![crate::config::Source::Bytes(initrd)];
    config.on_reset = OnReset::Stop;
    let machine =
        Machine::build(&config, Backends::default(), &FakeEngine(Script::new(|stage| reset(stage)))).unwrap();
    drop(config);
    assert!(held.upgrade().is_none());
    drop(machine);
}

#[test]
fn init_and_start_up_ipis_start_the_other_vcpus() {
    let (sender, started) = channel();
    let sender = Mutex::new(sender);
    let machine = build(
        3,
        Script::new(move |stage| {
            if stage.index == 0 {
                for target in 1..3 {
                    for command in [0x4500, 0x4600 | 0x9a, 0x4600 | 0x9a] {
                        lapic_write(stage, ICR_HIGH, target << 24);
                        lapic_write(stage, ICR_LOW, command);
                    }
                }
            } else {
                let cs = stage.state.segment(SegmentRegister::Cs);
                sender.lock().unwrap().send((stage.index, cs.base + stage.state.rip)).unwrap();
            }
            stage.state.events.halted = true;
            Some(Exit::Halt)
        }),
    );
    machine.start();
    let mut seen = [started.recv().unwrap(), started.recv().unwrap()];
    seen.sort_unstable();
    assert_eq!(seen, [(1, 0x9_a000), (2, 0x9_a000)]);
    machine.stop();
    machine.wait();
    assert!(started.try_recv().is_err(), "a second start-up ipi changes nothing");
}

#[test]
fn the_apic_timer_wakes_a_halted_vcpu() {
    let ticks = Arc::new(AtomicU32::new(0));
    let counter = ticks.clone();
    let machine = testing::machine(Script::new(move |stage| {
        if stage.state.rflags & Rflags::IF.bits() == 0 {
            stage.state.rflags |= Rflags::IF.bits();
            lapic_write(stage, 0x0f0, 0x1ff);
            lapic_write(stage, 0x320, 0x40); // one-shot, vector 0x40
        } else {
            assert_eq!(stage.bus.acknowledge_interrupt(0), Some(0x40));
            lapic_write(stage, 0x0b0, 0);
            if counter.fetch_add(1, SeqCst) == 4 {
                return reset(stage);
            }
        }
        lapic_write(stage, 0x380, 10_000);
        stage.state.events.halted = true;
        Some(Exit::Halt)
    }));
    machine.start();
    assert_eq!(machine.wait(), MachineEvent::Reset);
    assert_eq!(ticks.load(SeqCst), 5);
}

#[test]
fn a_reset_restarts_the_machine_if_so_configured() {
    let mut config = testing::config();
    config.on_reset = OnReset::Restart;
    let boots = Arc::new(AtomicU32::new(0));
    let counter = boots.clone();
    let script = Script::new(move |stage| {
        assert_eq!(stage.state.rip, 0x10_0000);
        stage.state.rip = 7;
        match counter.fetch_add(1, SeqCst) {
            0..3 => reset(stage),
            _ => Some(Exit::Shutdown { reason: "enough".to_owned() }),
        }
    });
    let machine = Machine::build(&config, Backends::default(), &FakeEngine(script)).unwrap();
    machine.start();
    assert_eq!(machine.wait(), MachineEvent::TripleFault { reason: "enough".to_owned() });
    assert_eq!(boots.load(SeqCst), 4);
}

#[test]
fn a_panic_on_the_console_explains_the_reset() {
    let machine = testing::machine(Script::panic_and_reset());
    machine.start();
    assert!(matches!(machine.wait(), MachineEvent::GuestPanic { message } if message.ends_with("root fs")));
}

#[test]
fn a_fatal_exit_of_one_vcpu_ends_all() {
    let machine = build(
        4,
        Script::new(|stage| match stage.index {
            0 => Some(Exit::Fatal { reason: "no idea".to_owned() }),
            _ => None,
        }),
    );
    machine.start();
    assert_eq!(machine.wait(), MachineEvent::Fatal { reason: "no idea".to_owned() });
}

#[test]
fn a_panicking_engine_ends_the_machine() {
    let machine = testing::machine(Script::new(|_| panic!("a bug, on purpose")));
    machine.start();
    assert!(matches!(machine.wait(), MachineEvent::Fatal { reason } if reason.contains("vcpu 0")));
}

#[test]
fn a_guest_that_prints_without_end_into_a_stuck_terminal_can_be_stopped() {
    struct Stuck(std::sync::mpsc::Receiver<()>);
    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (open, gate) = channel();
    let backends = Backends { console: Some(Box::new(Stuck(gate))), ..Backends::default() };
    let script = Script::new(|stage| {
        print(stage, &[b'x'; 4096]);
        None
    });
    let machine = Machine::build(&testing::config(), backends, &FakeEngine(script)).unwrap();
    machine.start();
    machine.stop();
    assert_eq!(machine.wait(), MachineEvent::Stopped);
    drop(open);
}

#[test]
fn what_the_guest_finds_in_memory_is_what_the_protocol_says() {
    let (sender, rams) = channel();
    struct Spy(Mutex<Sender<Arc<memory::GuestRam>>>, FakeEngine);
    impl Engine for Spy {
        fn name(&self) -> &'static str {
            "spy"
        }
        fn create_vm(&self, config: VmConfig) -> Result<Box<dyn engine::Vm>, engine::Error> {
            self.0.lock().unwrap().send(config.ram.clone()).unwrap();
            self.1.create_vm(config)
        }
    }
    let mut config = testing::config();
    config.boot.cmdline = "console=ttyS0".to_owned();
    config.boot.initrd = vec![
        crate::config::Source::Bytes((*b"12345").into()),
        crate::config::Source::Bytes((*b"678").into()),
    ];
    let spy = Spy(Mutex::new(sender), FakeEngine(Script::halt_for_ever()));
    let _machine = Machine::build(&config, Backends::default(), &spy).unwrap();
    let ram = rams.recv().unwrap();
    let bytes = |gpa: u64, len: usize| {
        let mut bytes = vec![0; len];
        ram.read(gpa, &mut bytes).unwrap();
        bytes
    };
    let word = |gpa| u64::from_le_bytes(bytes(gpa, 8).try_into().unwrap());
    let half = |gpa| u32::from_le_bytes(bytes(gpa, 4).try_into().unwrap());
    assert_eq!((half(0x6000), half(0x6004), half(0x600c)), (0x336e_c578, 1, 1));
    let (modules, cmdline) = (word(0x6010), word(0x6018));
    assert!(bytes(cmdline, 13) == b"console=ttyS0");
    let (initrd, len) = (word(modules), word(modules + 8));
    assert_eq!((bytes(initrd, 12), len), (b"12345\0\0\x00678\0".to_vec(), 12));
    assert_eq!(initrd % 4096, 0);
    let (map, entries) = (word(0x6028), half(0x6030));
    let total: u64 = (0..u64::from(entries)).map(|i| word(map + i * 24 + 8)).sum();
    assert_eq!(total, config.memory_bytes);
}

#[test]
fn an_initrd_larger_than_memory_is_refused_with_both_sizes() {
    let mut config = testing::config();
    config.boot.initrd = vec![crate::config::Source::Bytes(vec![0; 17 << 20].into())];
    let error = Machine::build(&config, Backends::default(), &FakeEngine(Script::halt_for_ever()));
    let text = chain(&error.err().unwrap());
    assert!(text.contains("initrd of 17 MiB does not fit in 16 MiB of memory"), "{text}");
}

#[test]
fn a_missing_kernel_and_a_long_command_line_are_named() {
    let mut config = testing::config();
    config.boot.cmdline = "x".repeat(3000);
    let error = Machine::build(&config, Backends::default(), &FakeEngine(Script::halt_for_ever()));
    assert!(chain(&error.err().unwrap()).contains("is longer than 2047"));
    config.boot.kernel = crate::config::Source::File("/nonexistent/kernel".into());
    let error = Machine::build(&config, Backends::default(), &FakeEngine(Script::halt_for_ever()));
    assert!(chain(&error.err().unwrap()).starts_with("read kernel /nonexistent/kernel: No such file"));
}

#[test]
fn an_owner_that_cannot_confine_itself_gets_no_machine() {
    let confine: crate::machine::Confine = Box::new(|| Err("no way".into()));
    let backends = Backends { confine: Some(confine), ..Backends::default() };
    let error = Machine::build(&testing::config(), backends, &FakeEngine(Script::halt_for_ever()));
    assert_eq!(chain(&error.err().unwrap()), "confine the machine: no way");
}
