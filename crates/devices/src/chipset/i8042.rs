//! The keyboard controller (Intel 8042, IBM AT technical reference), with neither keyboard nor mouse plugged in.
//!
//! It is there for its reset output and so that a system's search for a keyboard ends at once: self-tests pass,
//! the auxiliary port fails its test, and bytes sent to the keyboard are answered by "resend". The A20 gate is
//! always open.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use super::ports::{bytewise_read, bytewise_write};
use crate::device::{Device, PioDevice, PowerEvent, PowerSink};
use crate::irq::IrqLine;

/// Data port.
pub const DATA: u16 = 0x60;
/// Command (write) and status (read) port.
pub const COMMAND: u16 = 0x64;

mod status {
    pub const OUTPUT_FULL: u8 = 1;
    pub const SYSTEM: u8 = 1 << 2;
    pub const COMMAND: u8 = 1 << 3;
    pub const NOT_INHIBITED: u8 = 1 << 4;
}

mod command {
    pub const READ_CONFIGURATION: u8 = 0x20;
    pub const WRITE_CONFIGURATION: u8 = 0x60;
    pub const DISABLE_AUX: u8 = 0xa7;
    pub const ENABLE_AUX: u8 = 0xa8;
    pub const TEST_AUX: u8 = 0xa9;
    pub const SELF_TEST: u8 = 0xaa;
    pub const TEST_KEYBOARD: u8 = 0xab;
    pub const DISABLE_KEYBOARD: u8 = 0xad;
    pub const ENABLE_KEYBOARD: u8 = 0xae;
    pub const READ_OUTPUT_PORT: u8 = 0xd0;
    pub const WRITE_OUTPUT_PORT: u8 = 0xd1;
    pub const WRITE_KEYBOARD_BUFFER: u8 = 0xd2;
    pub const WRITE_AUX_BUFFER: u8 = 0xd3;
    pub const WRITE_AUX: u8 = 0xd4;
    pub const PULSE_OUTPUT: u8 = 0xf0;
}

/// Configuration byte: keyboard interrupt enabled.
const KEYBOARD_INTERRUPT: u8 = 1;
/// Configuration byte: system flag; keyboard and aux disabled.
const CONFIGURATION_POWER_UP: u8 = 0x34;
const KEYBOARD_DISABLED: u8 = 1 << 4;
const AUX_DISABLED: u8 = 1 << 5;
/// Output port: not in reset, A20 open.
const OUTPUT_POWER_UP: u8 = 3;
const RESEND: u8 = 0xfe;

/// The saved state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct I8042State {
    /// Configuration byte.
    pub configuration: u8,
    /// Output port.
    pub output_port: u8,
    /// A byte for the processor.
    pub output: Option<u8>,
    /// A command that waits for its parameter.
    pub command: Option<u8>,
    /// Whether the last write was a command.
    pub was_command: bool,
}

/// The chip.
pub struct I8042 {
    line: IrqLine,
    power: Arc<dyn PowerSink>,
    state: I8042State,
}

const KIND: &str = "i8042";
const VERSION: u32 = 1;

impl I8042State {
    fn power_up() -> Self {
        Self {
            configuration: CONFIGURATION_POWER_UP,
            output_port: OUTPUT_POWER_UP,
            output: None,
            command: None,
            was_command: false,
        }
    }
}

impl I8042 {
    /// A controller in power-up state; `line` is usually 1.
    pub fn new(line: IrqLine, power: Arc<dyn PowerSink>) -> Self {
        Self { line, power, state: I8042State::power_up() }
    }

    fn status(&self) -> u8 {
        let full = if self.state.output.is_some() { status::OUTPUT_FULL } else { 0 };
        let command = if self.state.was_command { status::COMMAND } else { 0 };
        // Commands are done at once, so the input buffer is never full.
        full | command | status::SYSTEM | status::NOT_INHIBITED
    }

    fn update_line(&self) {
        let enabled = self.state.configuration & KEYBOARD_INTERRUPT != 0;
        self.line.set(enabled && self.state.output.is_some());
    }

    fn write_command(&mut self, value: u8) {
        let s = &mut self.state;
        s.was_command = true;
        s.command = None;
        match value {
            command::READ_CONFIGURATION => s.output = Some(s.configuration),
            command::DISABLE_AUX => s.configuration |= AUX_DISABLED,
            command::ENABLE_AUX => s.configuration &= !AUX_DISABLED,
            // Clock line stuck low: nothing there.
            command::TEST_AUX => s.output = Some(1),
            command::SELF_TEST => s.output = Some(0x55),
            command::TEST_KEYBOARD => s.output = Some(0),
            command::DISABLE_KEYBOARD => s.configuration |= KEYBOARD_DISABLED,
            command::ENABLE_KEYBOARD => s.configuration &= !KEYBOARD_DISABLED,
            command::READ_OUTPUT_PORT => s.output = Some(s.output_port),
            command::WRITE_CONFIGURATION
            | command::WRITE_OUTPUT_PORT
            | command::WRITE_KEYBOARD_BUFFER
            | command::WRITE_AUX_BUFFER
            | command::WRITE_AUX => s.command = Some(value),
            // Bit 0 of the output port, low-active, is the processors' reset.
            command::PULSE_OUTPUT.. if value & 1 == 0 => self.power.request(PowerEvent::Reset),
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        let s = &mut self.state;
        s.was_command = false;
        match s.command.take() {
            Some(command::WRITE_CONFIGURATION) => s.configuration = value & 0x7f,
            Some(command::WRITE_OUTPUT_PORT) => {
                if value & 1 == 0 {
                    self.power.request(PowerEvent::Reset);
                }
                s.output_port = value | OUTPUT_POWER_UP;
            }
            Some(command::WRITE_KEYBOARD_BUFFER) => s.output = Some(value),
            // A loop-back that does not work says that there is no auxiliary port.
            Some(command::WRITE_AUX_BUFFER) => s.output = Some(!value),
            // To a keyboard or mouse that is not there.
            _ => s.output = Some(RESEND),
        }
    }
}

impl Device for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn reset(&mut self) {
        self.state = I8042State::power_up();
        self.update_line();
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { line: _, power: _, state } = self;
        Section::encode(KIND, VERSION, state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        self.state = section.decode(KIND, VERSION)?;
        self.update_line();
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }
}

impl PioDevice for I8042 {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        bytewise_read(port, data, |port| match port {
            DATA => self.state.output.take().unwrap_or(0),
            COMMAND => self.status(),
            _ => 0xff,
        });
        self.update_line();
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        bytewise_write(port, data, |port, value| match port {
            DATA => self.write_data(value),
            COMMAND => self.write_command(value),
            _ => {}
        });
        self.update_line();
    }
}
