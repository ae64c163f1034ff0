//! What was cached for address spaces that are not the current one, by PCID (SDM vol. 3 section 4.10.1).
//!
//! A write to CR3 that keeps what is cached for its PCID comes with nearly every switch between processes. What the
//! current one has is taken out of the tables that generated code looks at, and put back when its turn comes again.

/// Address spaces that are remembered: two more than Linux uses.
const SETS: usize = 8;
/// Values kept of each; to move more costs more than to find those that are needed again.
pub const MAX_VALUES: usize = 512;

/// Sets of values by PCID.
#[derive(Debug)]
pub struct Parked<T> {
    /// The one parked last is the last.
    sets: Vec<(u16, Vec<T>)>,
    /// Memory of sets that are gone.
    spare: Vec<Vec<T>>,
}

impl<T> Default for Parked<T> {
    fn default() -> Self {
        Self { sets: Vec::new(), spare: Vec::new() }
    }
}

impl<T> Parked<T> {
    /// Parks `values`, of which no more than [`MAX_VALUES`] are kept, for `pcid`.
    pub fn park(&mut self, pcid: u16, values: impl Iterator<Item = T>) {
        self.forget(pcid);
        if self.sets.len() == SETS {
            let (_, oldest) = self.sets.remove(0);
            self.recycle(oldest);
        }
        let mut set = self.spare.pop().unwrap_or_default();
        // All are consumed, whatever is kept of them.
        values.for_each(|value| {
            if set.len() < MAX_VALUES {
                set.push(value);
            }
        });
        self.sets.push((pcid, set));
    }

    /// Takes what is parked for `pcid`; to be handed back by [`Self::recycle`].
    pub fn take(&mut self, pcid: u16) -> Vec<T> {
        match self.sets.iter().position(|(owner, _)| *owner == pcid) {
            Some(at) => self.sets.remove(at).1,
            None => Vec::new(),
        }
    }

    /// Takes back the memory of a set.
    pub fn recycle(&mut self, mut set: Vec<T>) {
        set.clear();
        if self.spare.len() < SETS {
            self.spare.push(set);
        }
    }

    /// Forgets what is parked for `pcid`.
    pub fn forget(&mut self, pcid: u16) {
        let set = self.take(pcid);
        if set.capacity() > 0 {
            self.recycle(set);
        }
    }

    /// Forgets the values that `keep` does not hold for.
    pub fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.sets.iter_mut().for_each(|(_, set)| set.retain(&mut keep));
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        while let Some((_, set)) = self.sets.pop() {
            self.recycle(set);
        }
    }

    /// All values.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.sets.iter_mut().flat_map(|(_, set)| set)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_comes_back_once_and_only_for_its_pcid() {
        let mut parked = Parked::default();
        parked.park(3, [1, 2].into_iter());
        parked.park(4, [5].into_iter());
        assert_eq!(parked.take(7), []);
        assert_eq!(parked.take(3), [1, 2]);
        assert_eq!(parked.take(3), []);
        parked.forget(4);
        assert_eq!(parked.take(4), []);
    }

    #[test]
    fn the_oldest_set_goes_and_large_ones_are_cut() {
        let mut parked = Parked::default();
        for pcid in 0..=SETS as u16 {
            parked.park(pcid, 0..MAX_VALUES as u32 + 1);
        }
        assert!(parked.take(0).is_empty());
        assert_eq!(parked.take(1).len(), MAX_VALUES);
        parked.clear();
        assert!(parked.take(2).is_empty());
    }
}
