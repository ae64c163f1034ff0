//! What a translator keeps for speed alone, given back to the host while its vCPU has little to do.

use super::kept::Keeping;
use super::sites::Sites;
use super::{Jit, Jumps, Tools};

impl Jit {
    /// Gives back the memory of all translations and of what makes them. They were thrown away before ([`Self::clear`]); what
    /// is not executed often until the vCPU has more to do is left to the interpreter, as at its beginning.
    pub(in crate::x86) fn give_back(&mut self) {
        self.area.give_back();
        self.sites = Sites::default();
        self.jumps.iter_mut().for_each(Jumps::give_back);
        self.narrow_jumps = None;
        self.tools = Tools::new();
        self.patience = self.config.patience;
        // What a machine that waits does now and then is not worth these pages. No block is left that was decoded from them.
        if let Some(kept) = self.kept().cloned() {
            kept.give_back();
            self.keeping = Keeping::Nothing;
        }
    }
}
