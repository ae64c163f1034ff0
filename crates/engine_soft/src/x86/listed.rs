//! Lists of places in a table.

use super::zeroed::Zeroed;

/// Numbers below `N`, each at most once.
pub struct Listed<const N: usize> {
    list: Vec<u16>,
    has: Zeroed<[bool; N]>,
}

impl<const N: usize> Default for Listed<N> {
    fn default() -> Self {
        Self { list: Vec::new(), has: Zeroed::new() }
    }
}

impl<const N: usize> Listed<N> {
    /// Adds `number`.
    #[inline]
    pub fn add(&mut self, number: usize) {
        if !std::mem::replace(&mut self.has[number], true) {
            self.list.push(number as u16);
        }
    }

    /// Takes all out.
    pub fn drain(&mut self) -> impl Iterator<Item = usize> {
        let has = &mut self.has;
        self.list.drain(..).map(usize::from).inspect(|number| has[*number] = false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_handed_out_once() {
        let mut listed = Listed::<8>::default();
        [3, 5, 3].into_iter().for_each(|number| listed.add(number));
        assert_eq!(listed.drain().collect::<Vec<_>>(), [3, 5]);
        listed.add(3);
        assert_eq!(listed.drain().collect::<Vec<_>>(), [3]);
    }
}
