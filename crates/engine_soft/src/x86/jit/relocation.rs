//! Addresses of this process in translated code, so that the code can be kept and be of use to another process.

use super::Site;
use super::asm::{Alu, Mem, Size};
use super::translate::Translation;

/// What an address is that of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// A site of the translation, by its number in it.
    Site(usize),
    /// The slow stub, from behind the displacement.
    Slow,
    /// The leave stub, from behind the displacement.
    Leave,
    /// The word that asks for attention.
    Attention,
    /// The jump table, which something is added to.
    Jumps,
    /// The view of the TLB without or with RFLAGS.AC.
    View(bool),
    /// The user's view of the TLB, which something is added to.
    UserTlb,
    /// A place in the other part of the code, from behind the displacement.
    Across,
}

impl What {
    /// Bytes that the address takes.
    fn width(self) -> usize {
        match self {
            Self::Site(_) | Self::View(_) => size_of::<u64>(),
            Self::Slow | Self::Leave | Self::Attention | Self::Jumps | Self::UserTlb | Self::Across => {
                size_of::<u32>()
            }
        }
    }

    /// As a number that [`Self::from_number`] knows; `None` of a site with a number no translation has.
    fn number(self) -> Option<u16> {
        Some(match self {
            Self::Slow => 0,
            Self::Leave => 1,
            Self::Attention => 2,
            Self::Jumps => 3,
            Self::View(on) => 4 + u16::from(on),
            Self::Across => 6,
            Self::UserTlb => 7,
            Self::Site(number) => u16::try_from(number).ok()?.checked_add(Self::FIRST_SITE)?,
        })
    }

    /// The number of site 0.
    const FIRST_SITE: u16 = 8;

    fn from_number(number: u16) -> Self {
        match number {
            0 => Self::Slow,
            1 => Self::Leave,
            2 => Self::Attention,
            3 => Self::Jumps,
            4 => Self::View(false),
            5 => Self::View(true),
            6 => Self::Across,
            7 => Self::UserTlb,
            site => Self::Site(usize::from(site - Self::FIRST_SITE)),
        }
    }
}

/// A place in code with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relocation {
    at: u32,
    what: What,
}

/// The addresses themselves.
pub(super) struct Addresses {
    /// Where the code is to be, in one piece.
    pub(super) code: u64,
    /// The first of its sites, and how many there are.
    pub(super) sites: (u64, usize),
    pub(super) slow: u64,
    pub(super) leave: u64,
    pub(super) attention: i32,
    pub(super) jumps: i32,
    pub(super) user_tlb: i32,
    pub(super) views: Option<[u64; 2]>,
}

impl Relocation {
    /// Of a jump from one part of the code to the other.
    pub(super) fn across(at: u32) -> Self {
        Self { at, what: What::Across }
    }

    /// Makes `code` right for a second part, which begins at `second`, that is `by` bytes further on.
    pub(super) fn move_second(self, code: &mut [u8], second: u32, by: i32) -> Option<()> {
        let by = match (self.what, self.at < second) {
            (What::Across, true) => by,
            (What::Across | What::Slow | What::Leave, false) => by.wrapping_neg(),
            _ => return Some(()),
        };
        let place = code.get_mut(self.at as usize..)?.first_chunk_mut()?;
        *place = i32::from_le_bytes(*place).wrapping_add(by).to_le_bytes();
        Some(())
    }

    /// Bytes in a file.
    pub(super) const BYTES: usize = 4;

    /// As it is kept; `None` if that cannot be.
    pub(super) fn to_bytes(self) -> Option<[u8; Self::BYTES]> {
        let ([a, b], [c, d]) =
            (u16::try_from(self.at).ok()?.to_le_bytes(), self.what.number()?.to_le_bytes());
        Some([a, b, c, d])
    }

    /// What [`Self::to_bytes`] kept.
    pub(super) fn from_bytes([a, b, c, d]: [u8; Self::BYTES]) -> Self {
        let what = What::from_number(u16::from_le_bytes([c, d]));
        Self { at: u16::from_le_bytes([a, b]).into(), what }
    }

    /// Makes `code`, which has zeros here, or what is to be added, right for where things are. `None` if it is not code with
    /// such an address.
    pub(super) fn apply(self, code: &mut [u8], addresses: &Addresses) -> Option<()> {
        let at = self.at as usize;
        let place = code.get_mut(at..at + self.what.width())?;
        let behind = addresses.code + (at + place.len()) as u64;
        match self.what {
            What::Slow => place.copy_from_slice(&(addresses.slow.wrapping_sub(behind) as i32).to_le_bytes()),
            What::Leave => {
                place.copy_from_slice(&(addresses.leave.wrapping_sub(behind) as i32).to_le_bytes())
            }
            What::Attention => place.copy_from_slice(&addresses.attention.to_le_bytes()),
            What::Jumps | What::UserTlb => {
                let table = if self.what == What::Jumps { addresses.jumps } else { addresses.user_tlb };
                let offset = i32::from_le_bytes((&*place).try_into().ok()?);
                place.copy_from_slice(&table.wrapping_add(offset).to_le_bytes());
            }
            What::View(on) => place.copy_from_slice(&addresses.views?[usize::from(on)].to_le_bytes()),
            What::Across => {}
            What::Site(number) => {
                let (first, count) = addresses.sites;
                let site = (number < count).then(|| first + (number * size_of::<Site>()) as u64)?;
                place.copy_from_slice(&site.to_le_bytes());
            }
        }
        Some(())
    }

    /// Takes the address out of `code` again, whose jump table is at `jumps`, and the user's view of the TLB at `user_tlb`.
    pub(super) fn take_out(self, code: &mut [u8], jumps: i32, user_tlb: i32) -> Option<()> {
        let at = self.at as usize;
        let place = code.get_mut(at..at + self.what.width())?;
        match self.what {
            What::Jumps | What::UserTlb => {
                let table = if self.what == What::Jumps { jumps } else { user_tlb };
                let address = i32::from_le_bytes((&*place).try_into().ok()?);
                place.copy_from_slice(&address.wrapping_sub(table).to_le_bytes());
            }
            What::Across => {}
            _ => place.fill(0),
        }
        Some(())
    }
}

impl Translation<'_> {
    /// The instruction just written has the address of `what`, and `behind` bytes behind it.
    pub(super) fn relocate(&mut self, what: What, behind: u32) {
        let at = self.asm.position() - behind - what.width() as u32;
        self.relocations.push(Relocation { at, what });
    }

    /// Compares the word that asks for attention with zero.
    pub(super) fn write_look_at_attention(&mut self) {
        self.asm.alu_memory_immediate(Size::Dword, Alu::Cmp, Mem::Absolute(self.host.attention), 0);
        self.relocate(What::Attention, 1);
    }
}
