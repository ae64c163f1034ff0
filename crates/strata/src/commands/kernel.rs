//! `strata kernel …`: the kernels that machines boot.

use std::borrow::Cow;
use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use image::Store;
use image::kernels::{AddKernel, DEFAULT_PACKAGE, KernelBundle};
use machine::loader;
use serde::Serialize;

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output::{self, Table};
use crate::progress::Bar;
use crate::store;

/// Kernels that microVMs boot
#[derive(Subcommand)]
pub enum Command {
    /// Download a kernel with the host's package manager, without installing it
    Fetch(FetchOptions),
    /// Add a kernel from files: Debian packages, a bzImage, or an ELF vmlinux
    Add(AddOptions),
    /// List the kernels; the one marked with * is booted when nobody says which
    Ls(LsOptions),
    /// Remove kernels
    Rm(RmOptions),
}

#[derive(Args)]
pub struct FetchOptions {
    /// Package that is a kernel or depends on one
    #[arg(default_value = DEFAULT_PACKAGE)]
    package: String,
    /// Boot it from now on when nobody says which
    #[arg(long)]
    default: bool,
}

#[derive(Args)]
pub struct AddOptions {
    /// The kernel; further files are packages with more of its modules
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Folder with the kernel's modules, such as /lib/modules/VERSION
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// Boot it from now on when nobody says which
    #[arg(long)]
    default: bool,
}

#[derive(Args)]
pub struct LsOptions {
    /// Write JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Write the ids alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
pub struct RmOptions {
    /// Ids of the kernels
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

/// One kernel of the list.
#[derive(Serialize)]
struct Row<'a> {
    id: &'a str,
    default: bool,
    arch: &'a str,
    origin: &'a str,
    modules: usize,
    size_bytes: u64,
}

/// Does what the verb says.
///
/// # Errors
/// The store or the kernel is not as it should be; the message says which.
pub fn run(global: &Global, command: &Command) -> Outcome {
    let store = store::open(global)?;
    match command {
        Command::Fetch(options) => fetch(&store, options)?,
        Command::Add(options) => add(&store, options)?,
        Command::Ls(options) => list(&store, options)?,
        Command::Rm(options) => {
            for id in &options.ids {
                store.remove_kernel(id).map_err(explain)?;
            }
        }
    }
    Ok(Exit::Success)
}

/// What went wrong with a kernel of the store, and what to do about it.
pub fn explain(error: image::Error) -> Failure {
    let is_not_found = error.is_not_found();
    let failure = Failure::because("find the kernel", error);
    if is_not_found { failure.hint("strata kernel fetch, or strata kernel add FILE") } else { failure }
}

/// Decompresses on the host, once, what the guest would decompress at each boot.
fn unpack(bytes: &[u8]) -> Result<Option<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    Ok(match loader::extract_vmlinux(bytes)? {
        Cow::Borrowed(_) => None,
        Cow::Owned(vmlinux) => Some(vmlinux),
    })
}

fn fetch(store: &Store, options: &FetchOptions) -> Outcome<()> {
    let made = store.fetch_kernel(Some(&options.package), &unpack, options.default, &Bar::new());
    let bundle = made.map_err(|error| {
        let missing = matches!(error, image::Error::NoTool { .. });
        let failure = Failure::because(format!("fetch kernel package {:?}", options.package), error);
        if missing {
            failure.hint("download a kernel elsewhere and: strata kernel add FILE")
        } else {
            failure
        }
    })?;
    said(&bundle)
}

fn add(store: &Store, options: &AddOptions) -> Outcome<()> {
    let add = AddKernel {
        files: options.files.clone(),
        modules: options.modules.clone(),
        unpack: &unpack,
        make_default: options.default,
    };
    let name = options.files.first().map(|file| file.display().to_string()).unwrap_or_default();
    let bundle = store.add_kernel(&add, &Bar::new()).while_trying(|| format!("add kernel {name}"))?;
    said(&bundle)
}

fn said(bundle: &KernelBundle) -> Outcome<()> {
    output::write(&format!("{}\n", bundle.info().id))
}

fn list(store: &Store, options: &LsOptions) -> Outcome<()> {
    let bundles = store.kernels().while_trying(|| "list kernels".to_owned())?;
    let rows: Vec<Row<'_>> = bundles.iter().map(row).collect();
    if options.json {
        return output::json(&rows);
    }
    if options.quiet {
        return rows.iter().try_for_each(|row| output::write(&format!("{}\n", row.id)));
    }
    let mut table = Table::new(&["", "ID", "ARCH", "MODULES", "SIZE", "FROM"]);
    for row in rows {
        let mark = if row.default { "*" } else { "" };
        let size = output::bytes(row.size_bytes);
        let origin = output::visible(row.origin);
        table.row([mark.into(), row.id.into(), row.arch.into(), row.modules.to_string(), size, origin]);
    }
    table.print()
}

fn row(bundle: &KernelBundle) -> Row<'_> {
    let info = bundle.info();
    let files = [&info.kernel].into_iter().chain(&info.vmlinux).chain(info.modules.iter().map(|m| &m.file));
    Row {
        id: &info.id,
        default: bundle.is_default(),
        arch: &info.arch,
        origin: &info.origin,
        modules: info.modules.len(),
        size_bytes: files.map(|file| file.size_bytes).sum(),
    }
}
