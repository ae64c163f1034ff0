//! Where translations are put, and jumps between them led.

use super::Jit;
use super::relocation::Relocation;

impl Jit {
    /// Puts `code` where code is executed, what begins at `second` among what is needed rarely; its sites are those from
    /// `first` on of the newest, and their places are offsets in it.
    pub(super) fn place(
        &mut self,
        first: usize,
        code: &mut [u8],
        second: u32,
        mut relocations: impl Iterator<Item = Relocation>,
    ) -> Option<u64> {
        let rare = code.len() - second as usize;
        let by = self.area.next_rare(rare).wrapping_sub(self.area.next()).wrapping_sub(second);
        relocations.try_for_each(|relocation| relocation.move_second(code, second, by as i32))?;
        let (code, rare) = code.split_at(second as usize);
        let offset = self.area.push_apart(code, rare).ok()??;
        let moved = |at: u32| if at < second { at } else { at.wrapping_add(by) };
        for site in self.sites.newest(first) {
            site.patch = moved(site.patch) + offset;
            site.resume = self.area.address(moved(site.resume as u32) + offset);
        }
        Some(self.area.address(offset))
    }

    /// Leads the jump whose displacement is at `at` to host address `target`.
    pub(super) fn patch(&mut self, at: u32, target: u64) {
        let next = self.area.address(at) + 4;
        // A jump that stays as it is still leaves for Rust, which is right, only slow.
        let _ = self.area.patch(at, (target.wrapping_sub(next) as i32).to_le_bytes());
    }
}
