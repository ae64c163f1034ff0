//! What flags come to in a container's bundle: its process, its rights, its limits.

use std::path::Path;

use container::spec::{ConsoleSize, Cpu, Linux, Memory, Pids, Process, Resources, Spec};
use container::{capabilities, template};

use super::Options;
use super::container::Flags;
use super::security::Security;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::size::parse_size;

/// Microseconds in which a container has its share of the processors.
pub(super) const PERIOD_US: u64 = 100_000;

fn granted(flags: &Flags) -> Outcome<Vec<String>> {
    let all = || capabilities::NAMES.map(str::to_owned).to_vec();
    if flags.privileged {
        return Ok(all());
    }
    let mut names = template::default_capabilities();
    let full = |name: &String| {
        let number = capabilities::number(name);
        let unknown = || Failure::new(format!("no capability is called {name:?}")).exit(Exit::Usage);
        number.map(|number| capabilities::NAMES[number].to_owned()).ok_or_else(unknown)
    };
    for name in &flags.cap_drop {
        if name.eq_ignore_ascii_case("all") {
            names.clear();
        } else {
            let name = full(name)?;
            names.retain(|other| *other != name);
        }
    }
    for name in &flags.cap_add {
        if name.eq_ignore_ascii_case("all") {
            names = all();
        } else {
            names.push(full(name)?);
        }
    }
    Ok(names)
}

/// Says what whoever runs it should know.
pub fn warn(options: &Options) {
    if options.container.privileged {
        tracing::warn!("--privileged: root in this container can do what root can do on this host");
    }
}

/// What a container's bundle says but for networks and volumes; `wanted` is the command, `store` the folder whose disk is the one
/// that is meant where no other is named.
///
/// # Errors
/// A flag names no capability or device, or makes no sense.
pub fn spec(options: &Options, store: &Path, wanted: protocol::Process, hostname: String) -> Outcome<Spec> {
    let mut spec = plain(options, wanted, hostname)?;
    if let Some(resources) = spec.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
        resources.block_io = options.rates.block_io(store)?;
    }
    options.container.tuning.add_to(&mut spec)?;
    Ok(spec)
}

fn plain(options: &Options, wanted: protocol::Process, hostname: String) -> Outcome<Spec> {
    let flags = &options.container;
    let names = granted(flags)?;
    let security = Security::parse(&flags.security_opt)?;
    let mut mounts = template::mounts();
    for entry in &flags.tmpfs {
        mounts.push(tmpfs(entry)?);
    }
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let mut env = wanted.env;
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(path.to_owned());
    }
    let millicpus = flags.millicpus.unwrap_or(u64::from(options.sizing.cpus) * 1000);
    let quota = i64::try_from(millicpus.saturating_mul(PERIOD_US / 1000)).unwrap_or(i64::MAX);
    let devices = if flags.privileged { Vec::new() } else { vec![template::deny_all()] };
    let hidden = |paths: &[&str]| -> Vec<String> {
        if flags.privileged || security.open_paths {
            Vec::new()
        } else {
            paths.iter().map(|p| (*p).to_owned()).collect()
        }
    };
    Ok(Spec {
        oci_version: container::state::OCI_VERSION.to_owned(),
        process: Some(Process {
            terminal: wanted.tty.is_some(),
            console_size: wanted.tty.map(|size| ConsoleSize { height: size.rows, width: size.cols }),
            args: wanted.argv,
            env,
            cwd: if wanted.cwd.is_empty() { "/".to_owned() } else { wanted.cwd },
            capabilities: Some(template::capabilities(&names)),
            rlimits: flags.ulimit.clone(),
            no_new_privileges: security.no_new_privileges,
            apparmor_profile: security.app_armor.clone(),
            ..Process::default()
        }),
        root: Some(container::spec::Root { readonly: flags.read_only, ..Default::default() }),
        hostname: Some(hostname),
        mounts,
        linux: Some(Linux {
            resources: Some(Resources {
                devices,
                memory: Some(Memory {
                    limit: i64::try_from(options.sizing.memory).ok(),
                    ..Memory::default()
                }),
                cpu: Some(Cpu { quota: Some(quota), period: Some(PERIOD_US), ..Cpu::default() }),
                pids: Some(Pids { limit: flags.pids_limit }),
                ..Resources::default()
            }),
            cgroups_path: None,
            namespaces: template::namespaces(&["pid", "network", "ipc", "uts", "mount", "cgroup"]),
            seccomp: security.rules(&names, flags.privileged)?,
            masked_paths: hidden(&template::MASKED),
            readonly_paths: hidden(&template::READ_ONLY),
            ..Linux::default()
        }),
        ..Spec::default()
    })
}

fn tmpfs(entry: &str) -> Outcome<container::spec::Mount> {
    let (folder, options) = entry.split_once(':').unwrap_or((entry, ""));
    if !folder.starts_with('/') {
        return Err(Failure::new(format!("--tmpfs {entry:?}: the folder is absolute")).exit(Exit::Usage));
    }
    let mut mount = template::mount(folder, "tmpfs", "tmpfs", "nosuid,nodev,noexec");
    for option in options.split(',').filter(|option| !option.is_empty()) {
        mount.options.push(match option.strip_prefix("size=").map(parse_size) {
            Some(Ok(bytes)) => format!("size={bytes}"),
            _ => option.to_owned(),
        });
    }
    Ok(mount)
}
