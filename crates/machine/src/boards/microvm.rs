//! The microvm board: a PC's interrupt chips, clocks and serial port, virtio devices over MMIO, no PCI, no
//! firmware. Kernels are entered by PVH or by Linux's 64-bit protocol.

use std::io::Write;
use std::sync::{Arc, Mutex, OnceLock};

use arch::x86::CpuState;
use arch::x86::cpuid::{CpuModel, CpuidContext};
use devices::chipset::lapic::{self, Events, LapicGlue};
use devices::chipset::{
    ApicBus, BoardPorts, DualPic, GenerationId, I8042, InterruptRouter, Pit, PowerManagement, Rtc, i8042,
    ioapic, pic, pit, pm, ports, rtc,
};
use devices::rate::RateLimiter;
use devices::serial::{SerialInput, Uart16550, uart16550};
use devices::virtio::{self, BalloonHandle, MmioSlot, MmioTransport, VirtioDevice, VsockHost};
use devices::{BusBuilder, Clock, DeviceId, InterruptController, IrqLine, SharedDevice, TimerId};
use engine::VcpuSignal;
use memory::GuestRam;
use state::Archive;

use super::apics::EngineApics;
use super::bus::{BoardBus, Wake, as_clock};
use super::{Board, boot, layout};
use crate::clock::MachineClock;
use crate::config::ConsoleConfig;
use crate::console::Console;
use crate::doorbells::{Doorbell, Doorbells};
use crate::kvmclock::KvmClock;
use crate::machine::Power;
use crate::snapshot::{self, ClockState};
use crate::timers::{Expiry, MachineTimers};
use crate::tsc::{self, VcpuTscs};
use crate::vcpu::Saved;
use crate::{Error, MachineConfig};

/// The timer of vCPU 0's local APIC. Devices are numbered below; a board has fewer than this.
const FIRST_LAPIC_TIMER: TimerId = TimerId(64);

/// Section kind and version of kvm-clock's MSRs.
const KVM_CLOCK: (&str, u32) = ("kvm-clock", 1);

/// What the machine hands to the board.
pub(crate) struct Parts<'a> {
    pub console: Arc<Console>,
    pub vsock: Option<Box<dyn VsockHost>>,
    pub net: Vec<Box<dyn net::Port>>,
    pub folders: Option<fuse::link::Client>,
    pub power: Arc<Power>,
    pub signals: &'a [Arc<VcpuSignal>],
    /// Input frequency of local APICs' timers, if the engine has its own or the guest has measured it already.
    pub apic_timer_hz: Option<u64>,
    /// Memory that is there already.
    pub ram: Option<GuestRam>,
}

/// The board.
pub struct MicroVm {
    bus: Arc<BoardBus>,
    timers: Arc<MachineTimers>,
    console: Arc<Console>,
    input: ConsoleInput,
    balloon: Option<BalloonHandle>,
    pm: (Arc<Mutex<PowerManagement>>, DeviceId),
    boot: boot::Boot,
    apic_timer_hz: u64,
    /// The notify register of each queue, and who answers if not the bus.
    bells: Vec<Doorbell>,
    doorbells: OnceLock<Doorbells>,
}

/// Where keystrokes for the guest's console go. Clones are the same console.
#[derive(Clone)]
pub struct ConsoleInput {
    serial: Option<SerialInput>,
    virtio: Option<virtio::ConsoleHandle>,
}

impl ConsoleInput {
    /// Types `bytes`, waiting while the guest does not read a serial port; a virtio console's guest that does
    /// not read loses what is beyond its 64 KiB. `false` once the machine has ended.
    pub fn push(&self, bytes: &[u8]) -> bool {
        match (&self.serial, &self.virtio) {
            (Some(serial), _) => serial.push(bytes),
            (None, Some(console)) => {
                console.input(bytes);
                true
            }
            (None, None) => false,
        }
    }

    /// Tells a virtio console the size of the terminal; a serial port has no way to know.
    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(console) = &self.virtio {
            console.resize(columns, rows);
        }
    }

    fn close(&self) {
        if let Some(serial) = &self.serial {
            serial.close();
        }
    }
}

impl MicroVm {
    /// Makes memory and devices, and reads the kernel's files.
    pub(crate) fn build(config: &MachineConfig, parts: Parts<'_>) -> Result<Self, Error> {
        let fresh = || GuestRam::new(&layout::ram_ranges(config.memory_bytes));
        let ram = Arc::new(parts.ram.map_or_else(fresh, Ok)?);
        let tsc_khz = tsc::host_tsc_khz();
        let clock = Arc::new(MachineClock::new(tsc_khz));
        let timers = Arc::new(MachineTimers::new(as_clock(&clock), FIRST_LAPIC_TIMER, parts.signals));
        let tscs = Arc::new(VcpuTscs::new(tsc_khz, config.cpus));
        let mut glue = lapic_glue(config, &clock, &tscs, &timers, parts.signals);
        glue.timer_hz = parts.apic_timer_hz.unwrap_or(glue.timer_hz);
        let apic_timer_hz = glue.timer_hz;
        let apics = Arc::new(ApicBus::new(config.cpus, glue));
        let mut maker = Maker {
            builder: BusBuilder::new(),
            router: Arc::new(InterruptRouter::new(apics)),
            ram: ram.clone(),
            clock: clock.clone(),
            power: parts.power.clone(),
            slots: Vec::new(),
            bells: Vec::new(),
        };
        maker.add_interrupt_chips()?;
        let pm = maker.add_chipset()?;
        maker.add_generation_id(config)?;
        let input = maker.add_consoles(config.console, &parts.console)?;
        let balloon = maker.add_virtio(config, parts.vsock, parts.net)?;
        if config.folders {
            // After the balloon, for the same reason.
            maker.add_folders(parts.folders)?;
        }
        let Maker { builder, router, slots, bells, .. } = maker;
        let bus = Arc::new(BoardBus {
            devices: builder.build(timers.clone()),
            router,
            kvm_clock: KvmClock::new(config.cpus),
            ram,
            clock,
            tscs,
            power: parts.power,
        });
        if bus.devices.device_count() > FIRST_LAPIC_TIMER.0 {
            return Err(Error::Config { field: "devices".to_owned(), reason: "more than 64".to_owned() });
        }
        let boot = boot::Boot::new(config, slots)?;
        let (console, doorbells) = (parts.console, OnceLock::new());
        Ok(Self { bus, timers, console, input, balloon, pm, boot, apic_timer_hz, bells, doorbells })
    }

    /// Guest memory.
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.bus.ram
    }

    /// Frequency of the guest's TSC in kHz.
    pub fn tsc_khz(&self) -> u32 {
        self.bus.clock.tsc_khz()
    }

    /// Where keystrokes go.
    pub fn console_input(&self) -> ConsoleInput {
        self.input.clone()
    }

    /// What tells how much memory the guest gave back.
    pub fn balloon(&self) -> Option<BalloonHandle> {
        self.balloon.clone()
    }

    /// Presses the power button.
    pub fn power_button(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (bus, pm) = (self.bus.clone(), self.pm.clone());
        Arc::new(move || {
            devices::bus::lock(&pm.0).press_power_button();
            bus.devices.deadline_changed(pm.1);
        })
    }
}

impl Expiry for MicroVm {
    fn advance(&self, timer: TimerId, now: u64) {
        if timer < FIRST_LAPIC_TIMER {
            self.bus.devices.advance(timer, now);
        } else {
            self.bus.router.apics().advance(timer, now);
        }
    }
}

impl Board for MicroVm {
    fn bus(&self) -> Arc<dyn engine::Bus> {
        self.bus.clone()
    }

    fn timers(&self) -> &Arc<MachineTimers> {
        &self.timers
    }

    fn take_events(&self, vcpu: u32) -> Events {
        self.bus.router.apics().lapic(vcpu).take_events()
    }

    fn init_apic(&self, vcpu: u32) -> Result<(), Error> {
        Ok(self.bus.router.apics().init(vcpu)?)
    }

    fn join(&self, vm: &dyn engine::Vm) -> Result<(), Error> {
        if let Some(apics) = vm.local_apics() {
            self.bus.router.use_lapics_elsewhere(Arc::new(EngineApics(apics)));
        }
        let bus = self.bus.clone();
        let ring = move |bell: Doorbell| bus.devices.mmio_write(bell.gpa, &bell.value.to_le_bytes());
        if let Some(doorbells) = Doorbells::hang(vm, &self.bells, ring)? {
            let _ = self.doorbells.set(doorbells);
        }
        Ok(())
    }

    fn load(&self) -> Result<CpuState, Error> {
        self.bus.devices.reset();
        self.bus.tscs.reset();
        let apics = self.bus.router.apics();
        apics.reset();
        // There is no firmware to do it.
        apics.lapics().iter().for_each(lapic::Lapic::set_up_virtual_wire);
        self.bus.kvm_clock.reset();
        self.boot.load(&self.bus.ram)
    }

    fn rest(&self) -> Result<(), Error> {
        for (_, device) in self.bus.devices.devices() {
            if let Some(queued) = devices::bus::lock(device).as_queued() {
                queued.stop_queues();
            }
        }
        self.timers.rest();
        self.bus.clock.rest();
        self.timers.tell_expired(self);
        Ok(self.bus.router.take_back()?)
    }

    fn resume(&self) -> Result<(), Error> {
        self.bus.clock.run();
        self.bus.kvm_clock.after_rest(self.bus.time());
        // Unlike the clock, the TSC has gone on.
        self.bus.router.apics().lapics().iter().for_each(lapic::Lapic::tsc_changed);
        self.bus.router.hand_over()?;
        self.timers.resume();
        for (_, device) in self.bus.devices.devices() {
            if let Some(queued) = devices::bus::lock(device).as_queued() {
                queued.start_queues();
            }
        }
        Ok(())
    }

    fn save(&self, archive: &mut Archive, vcpus: &[Saved]) -> Result<(), snapshot::Error> {
        use snapshot::path;
        let (clock, tscs) = (&self.bus.clock, &self.bus.tscs);
        let rests_at = clock.resting_at().ok_or(snapshot::Error::NotPaused)?;
        let clocks = ClockState {
            now_ns: clock.now(),
            tsc_khz: clock.tsc_khz(),
            apic_timer_hz: self.apic_timer_hz,
            tscs: (0..).zip(vcpus).map(|(vcpu, _)| rests_at.wrapping_add(tscs.offset(vcpu))).collect(),
            latched_nmis: vcpus.iter().map(|saved| saved.latched_nmi).collect(),
        };
        archive.put(path::CLOCKS, snapshot::encode(path::CLOCKS, snapshot::CLOCKS, &clocks)?);
        let named = |source| snapshot::Error::Section { path: path::APICS.to_owned(), source };
        archive.put(path::APICS, self.bus.router.apics().save().map_err(named)?);
        let kvm_clock = self.bus.kvm_clock.save();
        archive.put(path::KVM_CLOCK, snapshot::encode(path::KVM_CLOCK, KVM_CLOCK, &kvm_clock)?);
        for (name, section) in self.bus.devices.save()? {
            archive.put(path::device(&name), section);
        }
        Ok(())
    }

    fn restore(
        &self,
        archive: &mut Archive,
        clocks: &ClockState,
        vcpus: &mut [Saved],
    ) -> Result<(), snapshot::Error> {
        use snapshot::path;
        let malformed = |at: &str, reason: &str| snapshot::Error::Section {
            path: at.to_owned(),
            source: state::Error::Malformed { kind: "microvm", reason: reason.to_owned() },
        };
        let rests_at = self.bus.clock.set(clocks.now_ns);
        for (vcpu, (saved, tsc)) in (0..).zip(vcpus.iter_mut().zip(&clocks.tscs)) {
            saved.state.tsc_offset = tsc.wrapping_sub(rests_at);
            self.bus.tscs.set_offset(vcpu, saved.state.tsc_offset);
        }
        let kvm_clock = snapshot::take(archive, path::KVM_CLOCK, KVM_CLOCK)?;
        self.bus.kvm_clock.restore(&kvm_clock).map_err(|reason| malformed(path::KVM_CLOCK, reason))?;
        // Missing sections are told by the bus; what is left over, by whoever called.
        self.bus.devices.restore(|name| archive.take(&path::device(name)).ok())?;
        // Last: lines that devices raise again have arrived already.
        let apics = archive.take(path::APICS)?;
        let named = |source| snapshot::Error::Section { path: path::APICS.to_owned(), source };
        self.bus.router.apics().restore(&apics).map_err(named)
    }

    fn is_stopping(&self) -> bool {
        self.bus.power.is_requested()
    }

    fn release(&self) {
        self.console.release();
        self.input.close();
    }
}

fn lapic_glue(
    config: &MachineConfig,
    clock: &Arc<MachineClock>,
    tscs: &Arc<VcpuTscs>,
    timers: &Arc<MachineTimers>,
    signals: &[Arc<VcpuSignal>],
) -> LapicGlue {
    let tsc_khz = clock.tsc_khz();
    let model = CpuModel::named(&config.cpu_model);
    let context = CpuidContext { apic_id: 0, vcpu_count: config.cpus, tsc_khz, cr4: 0, xcr0: 1 };
    let crystal_hz = model.as_ref().map_or(0, |model| model.cpuid(0x15, 0, &context).ecx);
    LapicGlue {
        clock: as_clock(clock),
        tsc: tscs.clone(),
        wake: Arc::new(Wake(signals.into())),
        timers: timers.clone(),
        first_timer: FIRST_LAPIC_TIMER,
        timer_hz: if crystal_hz == 0 { lapic::DEFAULT_TIMER_HZ } else { crystal_hz.into() },
        physical_bits: model.map_or(46, |model| model.physical_bits.into()),
    }
}

/// Makes devices and puts them on the bus.
struct Maker {
    builder: BusBuilder,
    router: Arc<InterruptRouter>,
    ram: Arc<GuestRam>,
    clock: Arc<MachineClock>,
    power: Arc<Power>,
    slots: Vec<MmioSlot>,
    bells: Vec<Doorbell>,
}

impl Maker {
    fn line(&self, gsi: u32) -> IrqLine {
        let controller: Arc<dyn InterruptController> = self.router.clone();
        IrqLine::new(controller, gsi)
    }

    fn add_ports(&mut self, device: SharedDevice, ranges: &[(u16, u32)]) -> Result<DeviceId, Error> {
        let id = self.builder.add(device)?;
        for &(first, len) in ranges {
            self.builder.claim_ports(id, first, len)?;
        }
        Ok(id)
    }

    fn add_interrupt_chips(&mut self) -> Result<(), Error> {
        let chip: Arc<Mutex<DualPic>> = self.router.pic().clone();
        let pairs = [pic::port::MASTER_COMMAND, pic::port::SLAVE_COMMAND, pic::port::MASTER_ELCR];
        self.add_ports(chip, &pairs.map(|first| (first, 2)))?;
        let id = self.builder.add(self.router.ioapic().clone())?;
        self.builder.claim_mmio(id, ioapic::DEFAULT_ADDRESS, ioapic::MMIO_SIZE)?;
        Ok(())
    }

    fn add_chipset(&mut self) -> Result<(Arc<Mutex<PowerManagement>>, DeviceId), Error> {
        let clock = || as_clock(&self.clock);
        let timer = Arc::new(Mutex::new(Pit::new(clock(), self.line(0))));
        let clock_chip = Arc::new(Mutex::new(Rtc::new(clock(), self.line(8))));
        let keyboard = Arc::new(Mutex::new(I8042::new(self.line(1), self.power.clone())));
        let board_ports = Arc::new(Mutex::new(BoardPorts::new(self.power.clone())));
        let management = PowerManagement::new(clock(), self.line(pm::SCI), self.power.clone());
        let management = Arc::new(Mutex::new(management));
        self.add_ports(timer, &[(pit::PORT, pit::PORTS), (pit::SYSTEM_CONTROL_B, 1)])?;
        self.add_ports(clock_chip, &[(rtc::PORT, rtc::PORTS)])?;
        self.add_ports(keyboard, &[(i8042::DATA, 1), (i8042::COMMAND, 1)])?;
        self.add_ports(board_ports, &[(ports::POST_PORT, 1), (ports::SYSTEM_CONTROL_A, 1)])?;
        let ranges = [(pm::PORT, pm::PORTS), (pm::RESET_BLOCK, pm::RESET_LEN)];
        let id = self.add_ports(management.clone(), &ranges)?;
        Ok((management, id))
    }

    fn add_generation_id(&mut self, config: &MachineConfig) -> Result<(), Error> {
        if config.generation_id {
            let line = self.line(layout::GENERATION_ID_LINE);
            let device = GenerationId::new(self.ram.clone(), layout::GENERATION_ID, line);
            self.builder.add(Arc::new(Mutex::new(device)))?;
        }
        Ok(())
    }

    fn add_consoles(&mut self, which: ConsoleConfig, console: &Console) -> Result<ConsoleInput, Error> {
        let mut input = ConsoleInput { serial: None, virtio: None };
        if matches!(which, ConsoleConfig::Serial | ConsoleConfig::Both) {
            let (line, clock) = (self.line(4), as_clock(&self.clock));
            let uart = Uart16550::new("serial0", line, Box::new(console.sink()), clock);
            let uart = Arc::new(Mutex::new(uart));
            self.add_ports(uart.clone(), &[(uart16550::COM1, uart16550::PORTS)])?;
            input.serial = Some(SerialInput::new(uart));
        }
        if matches!(which, ConsoleConfig::Virtio | ConsoleConfig::Both) {
            let output: Box<dyn Write + Send> = Box::new(console.sink());
            let (device, handle) = virtio::Console::new(output);
            self.add_virtio_device("console0".to_owned(), Box::new(device))?;
            input.virtio = Some(handle);
        }
        Ok(input)
    }

    fn add_virtio(
        &mut self,
        config: &MachineConfig,
        vsock: Option<Box<dyn VsockHost>>,
        net: Vec<Box<dyn net::Port>>,
    ) -> Result<Option<BalloonHandle>, Error> {
        let mut ends = net.into_iter();
        for (index, disk) in config.disks.iter().enumerate() {
            let access = if disk.read_only { disk::Access::ReadOnly } else { disk::Access::ReadWrite };
            let opened = disk::open(&disk.path, disk::OpenOptions { access })?;
            let limiter = RateLimiter::new(disk.rate, &as_clock(&self.clock));
            let block = virtio::Block::new(opened, &disk.serial).limited(limiter);
            self.add_virtio_device(format!("disk{index}"), Box::new(block))?;
        }
        for (index, port) in config.net.iter().enumerate() {
            let name = format!("net{index}");
            let end = ends.next().unwrap_or_else(|| Box::new(net::Unplugged));
            let card = virtio::Net::with_pairs(end, port.mac, port.queue_pairs)
                .map_err(|source| Error::Device { name: name.clone(), source: source.into() })?;
            let limiter = |limits| RateLimiter::new(limits, &as_clock(&self.clock));
            let card = card.limited(limiter(port.rx_rate), limiter(port.tx_rate));
            self.add_virtio_device(name, Box::new(card))?;
        }
        if config.rng {
            self.add_virtio_device("rng0".to_owned(), Box::new(virtio::Rng::new()))?;
        }
        if let Some(socket) = &config.vsock {
            let host =
                vsock.unwrap_or_else(|| Box::new(|_| Err(std::io::ErrorKind::ConnectionRefused.into())));
            let (device, _) = virtio::Vsock::new(socket.guest_cid.into(), host)
                .map_err(|source| Error::Device { name: "vsock0".to_owned(), source: source.into() })?;
            self.add_virtio_device("vsock0".to_owned(), Box::new(device))?;
        }
        // The last: machines that were saved without it have the others where they were.
        if !config.balloon {
            return Ok(None);
        }
        let (device, handle) = virtio::Balloon::new(self.ram.clone());
        self.add_virtio_device("balloon0".to_owned(), Box::new(device))?;
        Ok(Some(handle))
    }

    fn add_folders(&mut self, server: Option<fuse::link::Client>) -> Result<(), Error> {
        let name = "folders0".to_owned();
        let device = virtio::Fs::new(server)
            .map_err(|source| Error::Device { name: name.clone(), source: source.into() })?;
        self.add_virtio_device(name, Box::new(device))
    }

    fn add_virtio_device(&mut self, name: String, device: Box<dyn VirtioDevice>) -> Result<(), Error> {
        let Some(slot) = layout::virtio_slot(self.slots.len()) else {
            let reason = format!("more than {} virtio devices", layout::MAX_VIRTIO);
            return Err(Error::Config { field: name, reason });
        };
        let queues = 0..device.queue_sizes().len() as u32;
        self.bells.extend(queues.map(|value| Doorbell { gpa: slot.notify_register(), value }));
        let transport = MmioTransport::new(name, device, self.ram.clone(), self.line(slot.gsi));
        let id = self.builder.add(Arc::new(Mutex::new(transport)))?;
        self.builder.claim_mmio(id, slot.gpa, slot.size)?;
        self.slots.push(slot);
        Ok(())
    }
}
