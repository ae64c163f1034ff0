//! What the translator made of a block, for people: each guest instruction, and the host code behind it.

use std::fmt::Write as _;
use std::rc::Rc;

use iced_x86::{Decoder, DecoderOptions, Instruction};

use super::names::{self, Names};

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
    /// Where in it what is needed rarely begins, and where that is.
    pub rare: (u32, u64),
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
        let names = Names { cold: true, ..Names::default() };
        self.write(&format!(" at {:#x}", self.address), &Rc::new(names))
    }

    /// The same without addresses of this host.
    pub(super) fn text_with(&self, names: &Rc<Names>) -> String {
        self.write("", names)
    }

    fn write(&self, place: &str, names: &Rc<Names>) -> String {
        let mut text = String::new();
        let first = self.guest.first().map_or(0, Instruction::ip);
        let _ = writeln!(
            text,
            "block {:#x} at {:#x}: {} instructions, {} bytes of code{place}",
            self.page.wrapping_add(first),
            (self.gfn << 12) + first,
            self.guest.len(),
            self.code.len(),
        );
        for (n, mark) in
            self.marks.iter().enumerate().filter(|(_, mark)| names.cold || mark.what != Stretch::Cold)
        {
            let end = self.marks.get(n + 1).map_or(self.code.len(), |next| next.at as usize);
            // What comes back from an instruction does so in front of the next one's title.
            let start = self.place(mark.at);
            let label = names.code.get(&start).filter(|_| (mark.at as usize) < end);
            let (label, title) = (label.map_or_else(String::new, label_line), self.title(mark.what));
            let before = matches!(mark.what, Stretch::Instruction(_));
            text += &if before { format!("{label}  {title}\n") } else { format!("  {title}\n{label}") };
            for instruction in self.host(mark.at as usize, end) {
                if instruction.ip() != start {
                    names.code.get(&instruction.ip()).inspect(|name| text += &label_line(name));
                }
                text += &line(&instruction, place.is_empty(), names);
            }
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
                Some(instruction) => format!("{:03x}  {}", instruction.ip(), names::guest(instruction)),
                None => "(next block)".to_owned(),
            },
        }
    }

    /// The address of offset `at`.
    fn place(&self, at: u32) -> u64 {
        match self.rare {
            (second, rare) if at >= second => rare + u64::from(at - second),
            _ => self.address + u64::from(at),
        }
    }

    /// The host's instructions from offset `start` to `end`.
    pub(super) fn host(&self, start: usize, end: usize) -> Decoder<'_> {
        let at = self.place(start as u32);
        Decoder::with_ip(64, &self.code[start..end], at, DecoderOptions::NONE)
    }
}

fn label_line(name: &String) -> String {
    format!("    {name}:\n")
}

fn line(instruction: &Instruction, named: bool, names: &Rc<Names>) -> String {
    let (at, code) = (instruction.ip(), names::host(instruction, names));
    match names.notes.get(&at) {
        _ if !named => format!("      {at:x}  {code}\n"),
        Some(note) => format!("      {code}  # {note}\n"),
        None => format!("      {code}\n"),
    }
}
