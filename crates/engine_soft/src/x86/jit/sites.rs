//! Where the sites are kept to which translations lead.

use super::{Kind, Site, Vectors};

/// Sites in chunks, so that their addresses stay.
#[derive(Default)]
pub(super) struct Sites {
    chunks: Vec<Vec<Site>>,
    /// How many of the chunks are in use; the others wait, for to give them back takes the host milliseconds.
    used: usize,
}

impl Sites {
    const CHUNK: usize = 1024;

    /// A chunk with room for `count` more sites.
    pub(super) fn room(&mut self, count: usize) -> &mut Vec<Site> {
        let fits = |chunk: &Vec<Site>| chunk.capacity() - chunk.len() >= count;
        if !self.chunks[..self.used].last().is_some_and(fits) {
            if !self.chunks.get(self.used).is_some_and(fits) {
                self.chunks.insert(self.used, Vec::with_capacity(Self::CHUNK.max(count)));
            }
            self.used += 1;
        }
        &mut self.chunks[self.used - 1]
    }

    /// Forgets all, and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.chunks[..self.used].iter_mut().for_each(Vec::clear);
        self.used = 0;
    }
}

impl Site {
    /// A jump to a canonical address from nowhere in particular.
    pub(super) fn lost() -> Self {
        Self {
            kind: Kind::Jump,
            link: 0,
            outer: false,
            register: 0,
            vectors: Vectors::NONE,
            keeps_x87: true,
            distance: 0,
            ip: 0,
            patch: 0,
            resume: 0,
            block: std::ptr::null(),
            op: std::ptr::null(),
        }
    }
}
