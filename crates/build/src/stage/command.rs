//! RUN in a stage.

use super::{Made, Stage, names_heredoc};
use crate::error::{Error, Result};
use crate::instruction::Command;
use crate::run::Root;
use crate::source::Heredoc;

impl Stage<'_> {
    pub(super) fn run(&mut self, command: &Command, heredocs: &[Heredoc], env: &[String]) -> Result<Made> {
        let argv = self.run_words(command, heredocs)?;
        let mut root = match self.root.take().filter(Root::has_room) {
            Some(root) => root,
            None => self.new_root()?,
        };
        let (cwd, user) = (self.config.workdir(), self.config.user());
        let to = (self.shared.incoming, self.shared.epoch);
        let (layer, lasts) = root.run(self.shared.runner, (&argv, env), (&cwd, &user), to)?;
        self.root.set(lasts.then_some(root));
        Ok(layer.map_or(Made::Config, Made::Layer))
    }

    /// What the files are now, as a root for commands: what the base has for its workloads, or the files that are looked at anyway.
    fn new_root(&mut self) -> Result<Root> {
        let (incoming, progress) = (self.shared.incoming, self.shared.progress);
        match &self.base {
            Some(base) if base.manifest().layers().len() == self.layers.len() => {
                Root::on_image(self.shared.store.root_for_vm(base, progress)?, incoming)
            }
            _ => {
                self.view()?;
                let view = self.view.get_mut().expect("it was looked at");
                Root::on_file(view.file_system()?, incoming)
            }
        }
    }

    /// A line with here-documents is the shell's whole; one that is nothing but a here-document is that document.
    fn run_words(&self, command: &Command, heredocs: &[Heredoc]) -> Result<Vec<String>> {
        let (Command::Shell(line), false) = (command, heredocs.is_empty()) else {
            return Ok(self.config.words(command));
        };
        let alone = heredocs.len() == 1 && names_heredoc(line, &heredocs[0]);
        let script = if alone {
            if heredocs[0].text.starts_with("#!") {
                return Err(Error::Invalid(
                    "a here-document with its own interpreter is not supported".to_owned(),
                ));
            }
            heredocs[0].text.clone()
        } else {
            let end = |heredoc: &Heredoc| format!("{}{}\n", heredoc.text, heredoc.name);
            format!("{line}\n{}", heredocs.iter().map(end).collect::<String>())
        };
        Ok(self.config.words(&Command::Shell(script)))
    }
}
