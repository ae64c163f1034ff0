//! `list`, `ps` and `stats`.

use super::Runtime;
use crate::cgroups::Usage;
use crate::error::{Result, While};
use crate::state::State;

impl Runtime {
    /// All containers, by name. Those that go away meanwhile are left out.
    ///
    /// # Errors
    /// The folder of states cannot be read.
    pub fn list(&self) -> Result<Vec<State>> {
        let entries = match std::fs::read_dir(self.root()) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.during(|| format!("read {}", self.root().display()))?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut states: Vec<State> = names.filter_map(|id| self.state(&id).ok()).collect();
        states.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(states)
    }

    /// Ids of all processes of a container, as the host sees them.
    ///
    /// # Errors
    /// There is no such container, or its control groups cannot be read.
    pub fn processes(&self, id: &str) -> Result<Vec<i32>> {
        let record = self.folder(id)?.read()?;
        record.cgroups.processes()
    }

    /// What the processes of a container take of the host.
    ///
    /// # Errors
    /// There is no such container.
    pub fn usage(&self, id: &str) -> Result<Usage> {
        Ok(self.folder(id)?.read()?.cgroups.usage())
    }
}
