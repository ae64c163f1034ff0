//! What the translator made of a block, for people: each guest instruction, and the host code behind it.

use std::fmt::Write as _;

use iced_x86::{Decoder, DecoderOptions, Formatter, GasFormatter, Instruction};

/// A block and its translation.
pub struct Listing<'a> {
    /// Linear address of the guest's page.
    pub page: u64,
    /// Guest frame number of the page.
    pub gfn: u64,
    /// The guest's instructions, whose addresses are relative to the page.
    pub guest: &'a [Instruction],
    /// The host's code and its address.
    pub code: &'a [u8],
    /// Where it is.
    pub address: u64,
    /// Where in the code each stretch begins.
    pub marks: &'a [Mark],
}

/// Where a stretch of host code begins, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Offset in the code.
    pub at: u32,
    /// What the code from there on is.
    pub what: Stretch,
}

/// What a stretch of host code is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stretch {
    /// The way in from elsewhere.
    Outer,
    /// The way in from the same page.
    Inner,
    /// This instruction of the block; one past the last is the jump behind it.
    Instruction(usize),
    /// What is needed rarely.
    Cold,
}

impl Listing<'_> {
    /// Several lines, the last one empty.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let first = self.guest.first().map_or(0, Instruction::ip);
        let _ = writeln!(
            text,
            "block {:#x} at {:#x}: {} instructions, {} bytes of code at {:#x}",
            self.page.wrapping_add(first),
            (self.gfn << 12) + first,
            self.guest.len(),
            self.code.len(),
            self.address,
        );
        for (n, mark) in self.marks.iter().enumerate() {
            let end = self.marks.get(n + 1).map_or(self.code.len(), |next| next.at as usize);
            let _ = writeln!(text, "  {}", self.title(mark.what));
            self.host(mark.at as usize, end, &mut text);
        }
        text.push('\n');
        text
    }

    fn title(&self, what: Stretch) -> String {
        match what {
            Stretch::Outer => "(from elsewhere)".to_owned(),
            Stretch::Inner => "(from this page)".to_owned(),
            Stretch::Cold => "(rarely)".to_owned(),
            Stretch::Instruction(i) => match self.guest.get(i) {
                Some(instruction) => format!("{:03x}  {}", instruction.ip(), formatted(instruction)),
                None => "(next block)".to_owned(),
            },
        }
    }

    fn host(&self, start: usize, end: usize, text: &mut String) {
        let at = self.address + start as u64;
        let decoder = Decoder::with_ip(64, &self.code[start..end], at, DecoderOptions::NONE);
        for instruction in decoder {
            let _ = writeln!(text, "      {:x}  {}", instruction.ip(), formatted(&instruction));
        }
    }
}

fn formatted(instruction: &Instruction) -> String {
    let mut text = String::new();
    let mut formatter = GasFormatter::new();
    formatter.options_mut().set_gas_naked_registers(true);
    formatter.format(instruction, &mut text);
    text
}
