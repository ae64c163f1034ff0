//! The PC's pair of 8259A interrupt controllers (Intel 8259A data sheet) with the ELCR of EISA chip sets.
//!
//! ```text
//! power-up ── ICW1 ─► ICW2 ─┬─ SNGL=0 ─► ICW3 ─┬─ IC4=1 ─► ICW4 ─► ready
//!                           └─ SNGL=1 ─────────┴─ IC4=0 ─────────► ready      (ICW1 starts over at any time)
//! ```
//! Departures: an edge stays latched when its line falls before it is acknowledged, so that a pulse is never lost
//! (as QEMU and KVM do); spurious interrupts 7 and 15 arise when a level-triggered line falls or a mask is set in
//! that time. MCS-80 mode and buffered mode do nothing. The slave hangs on input 2 whatever ICW3 says.

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use state::Section;

use super::ports::{bytewise_read, bytewise_write};
use crate::device::{Device, PioDevice};

/// Ports of the pair: command and data of the master and of the slave, and ELCR.
pub mod port {
    #![allow(missing_docs)]
    pub const MASTER_COMMAND: u16 = 0x20;
    pub const MASTER_DATA: u16 = 0x21;
    pub const SLAVE_COMMAND: u16 = 0xa0;
    pub const SLAVE_DATA: u16 = 0xa1;
    pub const MASTER_ELCR: u16 = 0x4d0;
    pub const SLAVE_ELCR: u16 = 0x4d1;
}

const CASCADE: u8 = 2;
/// Lines 0, 1, 2, 8 and 13 are always edge-triggered.
const ELCR_MASK: [u8; 2] = [0xf8, 0xde];

/// Which initialization command word is next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Never initialized: no interrupts.
    #[default]
    PowerUp,
    /// ICW2.
    Icw2,
    /// ICW3.
    Icw3,
    /// ICW4.
    Icw4,
    /// Initialized.
    Ready,
}

/// One chip, live and saved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PicState {
    /// Initialization.
    pub step: Step,
    /// ICW1.
    pub icw1: u8,
    /// Vector of input 0.
    pub vector_base: u8,
    /// ICW3; no effect.
    pub icw3: u8,
    /// Automatic end of interrupt.
    pub auto_eoi: bool,
    /// Special fully nested mode.
    pub special_fully_nested: bool,
    /// Rotate at automatic end of interrupt.
    pub rotate_on_auto_eoi: bool,
    /// Special mask mode.
    pub special_mask: bool,
    /// Whether the next read is a poll.
    pub poll: bool,
    /// Whether reads of the command port give ISR rather than IRR.
    pub read_isr: bool,
    /// The input with the highest priority.
    pub highest: u8,
    /// Edge/level control register.
    pub elcr: u8,
    /// Interrupt mask register.
    pub imr: u8,
    /// Edges latched.
    pub edges: u8,
    /// In-service register.
    pub isr: u8,
    /// Levels of the inputs.
    pub lines: u8,
}

impl PicState {
    fn level_mask(&self) -> u8 {
        // LTIM makes every input level-triggered.
        if self.icw1 & 8 != 0 { 0xff } else { self.elcr }
    }

    fn irr(&self) -> u8 {
        self.edges & !self.level_mask() | self.lines & self.level_mask()
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << input;
        if high {
            if self.lines & bit == 0 {
                self.edges |= bit;
            }
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// Distance of the highest-priority bit from the input that has the highest priority; 8 if there is none.
    fn rank(&self, bits: u8) -> u32 {
        bits.rotate_right(self.highest.into()).trailing_zeros()
    }

    /// The input that makes INT high.
    fn request(&self, is_master: bool) -> Option<u8> {
        if self.step != Step::Ready {
            return None;
        }
        let requested = self.rank(self.irr() & !self.imr);
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if is_master && self.special_fully_nested {
            in_service &= !(1 << CASCADE);
        }
        (requested < self.rank(in_service)).then_some((requested as u8 + self.highest) & 7)
    }

    fn acknowledge(&mut self, input: u8) {
        self.edges &= !(1 << input);
        if !self.auto_eoi {
            self.isr |= 1 << input;
        } else if self.rotate_on_auto_eoi {
            self.highest = (input + 1) & 7;
        }
    }

    /// Ends the interrupt of highest priority in service; in special mask mode masked ones do not count.
    fn end_of_interrupt(&mut self) -> Option<u8> {
        let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let rank = self.rank(candidates);
        (rank < 8).then(|| {
            let input = (rank as u8 + self.highest) & 7;
            self.isr &= !(1 << input);
            input
        })
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.start_initialization(value);
        } else if value & 0x08 != 0 {
            self.write_ocw3(value);
        } else {
            self.write_ocw2(value);
        }
    }

    fn start_initialization(&mut self, icw1: u8) {
        let (elcr, lines, vector_base) = (self.elcr, self.lines, self.vector_base);
        *self = Self { step: Step::Icw2, icw1, elcr, lines, vector_base, ..Self::default() };
    }

    fn write_ocw2(&mut self, value: u8) {
        let input = value & 7;
        match value >> 5 {
            0 => self.rotate_on_auto_eoi = false,
            1 => {
                self.end_of_interrupt();
            }
            3 => self.isr &= !(1 << input),
            4 => self.rotate_on_auto_eoi = true,
            5 => {
                if let Some(ended) = self.end_of_interrupt() {
                    self.highest = (ended + 1) & 7;
                }
            }
            6 => self.highest = (input + 1) & 7,
            7 => {
                self.isr &= !(1 << input);
                self.highest = (input + 1) & 7;
            }
            _ => {}
        }
    }

    fn write_ocw3(&mut self, value: u8) {
        self.poll = value & 4 != 0;
        if value & 2 != 0 {
            self.read_isr = value & 1 != 0;
        }
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.step {
            Step::PowerUp | Step::Ready => self.imr = value,
            Step::Icw2 => {
                self.vector_base = value & 0xf8;
                self.step = if self.icw1 & 2 == 0 { Step::Icw3 } else { self.after_icw3() };
            }
            Step::Icw3 => {
                self.icw3 = value;
                self.step = self.after_icw3();
            }
            Step::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.step = Step::Ready;
            }
        }
    }

    fn after_icw3(&self) -> Step {
        if self.icw1 & 1 != 0 { Step::Icw4 } else { Step::Ready }
    }

    fn read(&mut self, is_command: bool, is_master: bool) -> u8 {
        if std::mem::take(&mut self.poll) {
            return match self.request(is_master) {
                Some(input) => {
                    self.acknowledge(input);
                    0x80 | input
                }
                None => 0,
            };
        }
        match (is_command, self.read_isr) {
            (true, true) => self.isr,
            (true, false) => self.irr(),
            (false, _) => self.imr,
        }
    }

    fn check(&self, elcr_mask: u8) -> bool {
        self.highest < 8 && self.vector_base & 7 == 0 && self.elcr & !elcr_mask == 0
    }
}

/// Is told the level of the master's INT output whenever it changes.
pub type IntOutput = Box<dyn Fn(bool) + Send>;

/// The pair.
pub struct DualPic {
    // Glue.
    output: IntOutput,
    // Derived.
    int: bool,
    // Saved.
    master: PicState,
    slave: PicState,
}

#[derive(Serialize, Deserialize)]
struct DualPicState {
    master: PicState,
    slave: PicState,
}

const KIND: &str = "pic";
const VERSION: u32 = 1;

impl DualPic {
    /// A pair in power-up state.
    pub fn new(output: IntOutput) -> Self {
        Self { output, int: false, master: PicState::default(), slave: PicState::default() }
    }

    /// Drives line 0..=15; line 2 is the cascade and nobody's.
    pub fn set_line(&mut self, line: u8, high: bool) {
        match line {
            CASCADE => return,
            0..8 => self.master.set_line(line, high),
            8..16 => self.slave.set_line(line - 8, high),
            _ => return,
        }
        self.update();
    }

    /// The processor's INTA cycles: the vector of the interrupt of highest priority, or a spurious one.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.request(true) {
            Some(CASCADE) => {
                self.master.acknowledge(CASCADE);
                let input = self.slave.request(false);
                if let Some(input) = input {
                    self.slave.acknowledge(input);
                }
                self.slave.vector_base | input.unwrap_or(7)
            }
            Some(input) => {
                self.master.acknowledge(input);
                self.master.vector_base | input
            }
            None => self.master.vector_base | 7,
        };
        // INT goes low during the cycle, so that whoever waits for its edge sees the next request.
        self.set_int(false);
        self.update();
        vector
    }

    /// The level of INT.
    pub fn int(&self) -> bool {
        self.int
    }

    fn update(&mut self) {
        // The slave's INT is a level; so that no edge of it stays latched, the latch follows it.
        let slave = self.slave.request(false).is_some();
        self.master.lines = self.master.lines & !(1 << CASCADE) | u8::from(slave) << CASCADE;
        self.master.edges = self.master.edges & !(1 << CASCADE) | u8::from(slave) << CASCADE;
        self.set_int(self.master.request(true).is_some());
    }

    fn set_int(&mut self, high: bool) {
        if self.int != high {
            self.int = high;
            (self.output)(high);
        }
    }

    fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            port::MASTER_COMMAND | port::MASTER_DATA => self.master.read(port == port::MASTER_COMMAND, true),
            port::SLAVE_COMMAND | port::SLAVE_DATA => self.slave.read(port == port::SLAVE_COMMAND, false),
            port::MASTER_ELCR => return self.master.elcr,
            port::SLAVE_ELCR => return self.slave.elcr,
            _ => return 0xff,
        };
        // A poll acknowledges.
        self.update();
        value
    }

    fn write(&mut self, port: u16, value: u8) {
        match port {
            port::MASTER_COMMAND => self.master.write_command(value),
            port::MASTER_DATA => self.master.write_data(value),
            port::SLAVE_COMMAND => self.slave.write_command(value),
            port::SLAVE_DATA => self.slave.write_data(value),
            port::MASTER_ELCR => self.master.elcr = value & ELCR_MASK[0],
            port::SLAVE_ELCR => self.slave.elcr = value & ELCR_MASK[1],
            _ => return,
        }
        self.update();
    }
}

impl Device for DualPic {
    fn name(&self) -> &str {
        "pic"
    }

    /// Line levels stay: they are their drivers'.
    fn reset(&mut self) {
        for chip in [&mut self.master, &mut self.slave] {
            *chip = PicState { lines: chip.lines, ..PicState::default() };
        }
        self.update();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { output: _, int: _, master, slave } = self;
        let state = DualPicState { master: master.clone(), slave: slave.clone() };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let DualPicState { master, slave } = section.decode(KIND, VERSION)?;
        if !master.check(ELCR_MASK[0]) || !slave.check(ELCR_MASK[1]) {
            let reason = "priority, vector base or elcr".to_owned();
            return Err(state::Error::Malformed { kind: KIND, reason });
        }
        (self.master, self.slave) = (master, slave);
        self.update();
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }
}

impl PioDevice for DualPic {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        bytewise_read(port, data, |port| self.read(port));
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        bytewise_write(port, data, |port, value| self.write(port, value));
    }
}
