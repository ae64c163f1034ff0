//! `--security-opt`: docker's words for what a container's processes may do beside their capabilities.

use container::seccomp::{docker, profile};
use container::spec::Seccomp;

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};

/// What the flags say.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Security {
    /// No program gives a process more rights than it has.
    pub no_new_privileges: bool,
    /// Nothing of `/proc` and `/sys` is hidden or read-only.
    pub open_paths: bool,
    /// The AppArmor profile of the command.
    pub app_armor: Option<String>,
    /// Instead of the filter of system calls that there is otherwise.
    filter: Option<Filter>,
}

#[derive(Debug, PartialEq, Eq)]
enum Filter {
    None,
    /// The text of a profile.
    Profile(String),
}

impl Security {
    /// Reads the flags, and a profile's file if they name one.
    ///
    /// # Errors
    /// A word that is not known, or a file that cannot be read.
    pub fn parse(options: &[String]) -> Outcome<Self> {
        let mut all = Self::default();
        for option in options {
            let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
            match (name, value) {
                ("no-new-privileges", "" | "true") => all.no_new_privileges = true,
                ("no-new-privileges", "false") => all.no_new_privileges = false,
                ("seccomp", "unconfined") => all.filter = Some(Filter::None),
                ("seccomp", "builtin") => all.filter = None,
                ("seccomp", text) if text.starts_with('{') => {
                    all.filter = Some(Filter::Profile(text.to_owned()));
                }
                ("seccomp", file) if !file.is_empty() => {
                    let text = std::fs::read_to_string(file);
                    let text = text.while_trying(|| format!("read the seccomp profile {file}"))?;
                    all.filter = Some(Filter::Profile(text));
                }
                ("systempaths", "unconfined") => all.open_paths = true,
                ("apparmor", profile) if !profile.is_empty() => all.app_armor = Some(profile.to_owned()),
                // There are none.
                ("label", "disable") => {}
                _ => return Err(unknown(option)),
            }
        }
        Ok(all)
    }

    /// The same flags with what their files say now in place of the files: for whoever reads them later, and elsewhere.
    ///
    /// # Errors
    /// As [`Security::parse`].
    pub fn settle(options: &[String]) -> Outcome<Vec<String>> {
        let mut settled: Vec<String> =
            options.iter().filter(|option| !option.starts_with("seccomp")).cloned().collect();
        settled.extend(Self::parse(options)?.filter.map(|filter| match filter {
            Filter::None => "seccomp=unconfined".to_owned(),
            Filter::Profile(text) => format!("seccomp={}", text.trim_start()),
        }));
        Ok(settled)
    }

    /// The filter of a process with these capabilities; none for a privileged one that no flag gives one.
    ///
    /// # Errors
    /// The profile is none.
    pub fn rules(&self, capabilities: &[String], privileged: bool) -> Outcome<Option<Seccomp>> {
        match &self.filter {
            Some(Filter::None) => Ok(None),
            Some(Filter::Profile(text)) => {
                docker::profile(text, capabilities).map(Some).map_err(super::container::explain)
            }
            None => Ok((!privileged).then(|| profile::default_rules(capabilities))),
        }
    }
}

fn unknown(option: &str) -> Failure {
    let known = "no-new-privileges, seccomp=unconfined, seccomp=FILE, apparmor=PROFILE, systempaths=unconfined, label=disable";
    Failure::new(format!("--security-opt {option:?}: {known}")).exit(Exit::Usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Outcome<Security> {
        Security::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn dockers_words_are_understood_in_both_spellings() {
        let all =
            parse(&["no-new-privileges", "seccomp:unconfined", "apparmor=web", "systempaths=unconfined"]);
        let wanted = Security {
            no_new_privileges: true,
            open_paths: true,
            app_armor: Some("web".to_owned()),
            filter: Some(Filter::None),
        };
        assert_eq!(all.unwrap(), wanted);
        assert_eq!(
            parse(&["no-new-privileges:true", "no-new-privileges=false"]).unwrap(),
            Security::default()
        );
        assert_eq!(parse(&["label=disable", "seccomp=builtin"]).unwrap(), Security::default());
        for wrong in ["seccomp", "seccomp=", "label=type:x", "no-new-privileges=yes", "other", "apparmor"] {
            assert!(parse(&[wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_profile_is_read_where_it_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("profile.json");
        std::fs::write(&file, "\n{\"defaultAction\":\"SCMP_ACT_ALLOW\"}").unwrap();
        let option = format!("seccomp={}", file.display());
        let settled = Security::settle(&[option.clone(), "label=disable".to_owned()]).unwrap();
        assert_eq!(settled, ["label=disable", "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}"]);
        let rules = Security::parse(&settled).unwrap().rules(&[], true).unwrap().unwrap();
        assert_eq!(rules.default_action, "SCMP_ACT_ALLOW");
        std::fs::remove_file(&file).unwrap();
        assert!(parse(&[&option]).is_err());
        assert!(parse(&["seccomp={"]).unwrap().rules(&[], false).is_err());
        assert!(Security::default().rules(&[], false).unwrap().is_some());
        assert!(Security::default().rules(&[], true).unwrap().is_none());
    }
}
