//! Single-port devices: the POST code at 0x80 and system control port A at 0x92; and how 8-bit chips are accessed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::Section;

use crate::device::{Device, PioDevice, PowerEvent, PowerSink};

/// Reads an 8-bit chip: wider accesses are one cycle for each byte, at consecutive ports.
pub(crate) fn bytewise_read(port: u16, data: &mut [u8], mut read: impl FnMut(u16) -> u8) {
    for (byte, i) in data.iter_mut().zip(0..) {
        *byte = read(port.wrapping_add(i));
    }
}

/// Writes an 8-bit chip.
pub(crate) fn bytewise_write(port: u16, data: &[u8], mut write: impl FnMut(u16, u8)) {
    for (byte, i) in data.iter().zip(0..) {
        write(port.wrapping_add(i), *byte);
    }
}

/// POST code port and its delay: what is written can be read back. Claims 0x80.
pub const POST_PORT: u16 = 0x80;
/// System control port A: fast A20 and reset. Claims 0x92.
pub const SYSTEM_CONTROL_A: u16 = 0x92;

const KIND: &str = "board-ports";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct BoardPortsState {
    post_code: u8,
    control_a: u8,
}

/// Ports 0x80 and 0x92. The A20 gate is always open: its bit can be written but does nothing.
pub struct BoardPorts {
    // Glue.
    power: Arc<dyn PowerSink>,
    // Saved.
    post_code: u8,
    control_a: u8,
}

/// Port 0x92: A20 open.
const A20: u8 = 1 << 1;
/// Port 0x92: a rising edge resets the processors.
const FAST_RESET: u8 = 1 << 0;

impl BoardPorts {
    /// The ports; resets are asked of `power`.
    pub fn new(power: Arc<dyn PowerSink>) -> Self {
        Self { power, post_code: 0, control_a: A20 }
    }

    /// What was last written to port 0x80.
    pub fn post_code(&self) -> u8 {
        self.post_code
    }
}

impl Device for BoardPorts {
    fn name(&self) -> &str {
        "board-ports"
    }

    fn reset(&mut self) {
        self.post_code = 0;
        self.control_a = A20;
    }

    fn save(&self) -> Result<Section, state::Error> {
        let Self { power: _, post_code, control_a } = self;
        let state = BoardPortsState { post_code: *post_code, control_a: *control_a };
        Section::encode(KIND, VERSION, &state)
    }

    fn restore(&mut self, section: &Section) -> Result<(), state::Error> {
        let BoardPortsState { post_code, control_a } = section.decode(KIND, VERSION)?;
        (self.post_code, self.control_a) = (post_code, control_a);
        Ok(())
    }

    fn as_pio(&mut self) -> Option<&mut dyn PioDevice> {
        Some(self)
    }
}

impl PioDevice for BoardPorts {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        bytewise_read(port, data, |port| match port {
            POST_PORT => self.post_code,
            SYSTEM_CONTROL_A => self.control_a,
            _ => 0xff,
        });
    }

    fn port_write(&mut self, port: u16, data: &[u8]) {
        bytewise_write(port, data, |port, value| match port {
            POST_PORT => self.post_code = value,
            SYSTEM_CONTROL_A => {
                if value & !self.control_a & FAST_RESET != 0 {
                    self.power.request(PowerEvent::Reset);
                }
                self.control_a = value;
            }
            _ => {}
        });
    }
}
