//! `strata kernel …`: the kernels that machines boot.

use std::borrow::Cow;
use std::error::Error;
use std::path::PathBuf;

use clap::{Args, Subcommand};
use image::kernels::{AddKernel, DEFAULT_PACKAGE, KernelBundle};
use image::{Progress, Store};
use machine::loader;
use serde::Serialize;

use super::listing::Listing;
use super::run::initrd;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
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
    Ls(Listing),
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
    broken: Option<String>,
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
            return each(&options.ids, |id| {
                let listed = "strata kernel ls shows what there is";
                store.remove_kernel(id).map_err(|error| {
                    let is_not_found = error.is_not_found();
                    let failure = Failure::because(format!("remove kernel {id}"), error);
                    if is_not_found { failure.hint(listed) } else { failure }
                })
            });
        }
    }
    Ok(Exit::Success)
}

/// What went wrong with the kernel that `act` needs, and what to do about it.
pub fn explain(act: String, id: Option<&str>, error: image::Error) -> Failure {
    let hint = match (&error, id) {
        (image::Error::NoKernel { .. }, Some(_)) => "strata kernel ls shows what there is".to_owned(),
        (image::Error::NoKernel { .. }, None) => "strata kernel fetch, or strata kernel add FILE".to_owned(),
        (image::Error::CorruptBlob { .. } | image::Error::Json { .. }, _) => {
            "strata kernel fetch or strata kernel add FILE puts a whole one in its place; strata kernel rm removes it"
                .to_owned()
        }
        _ => return Failure::because(act, error),
    };
    Failure::because(act, error).hint(hint)
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
    let bar = Bar::new();
    let bundle = store.add_kernel(&add, &bar).while_trying(|| format!("add kernel {name}"))?;
    let absent = initrd::absent(&bundle);
    if !absent.is_empty() {
        bar.note(&format!(
            "it came without modules that `strata run` needs unless they are built in: {}; --modules DIR adds them",
            absent.join(", ")
        ));
    }
    said(&bundle)
}

fn said(bundle: &KernelBundle) -> Outcome<()> {
    output::write(&format!("{}\n", bundle.info().id))
}

fn list(store: &Store, options: &Listing) -> Outcome<()> {
    let bundles = store.kernels().while_trying(|| "list kernels".to_owned())?;
    let broken = store.broken_kernels().while_trying(|| "list kernels".to_owned())?;
    let broken: Vec<(String, String)> =
        broken.into_iter().map(|(id, error)| (id, Failure::because("open it", error).to_string())).collect();
    let mut rows: Vec<Row<'_>> = bundles.iter().map(row).collect();
    rows.extend(broken.iter().map(|(id, reason)| broken_row(id, reason)));
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
        let origin = match &row.broken {
            Some(reason) => format!("broken: {}", output::visible(reason)),
            None => output::visible(row.origin),
        };
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
        broken: None,
    }
}

/// A kernel nothing is known of but that it is no good.
fn broken_row<'a>(id: &'a str, reason: &str) -> Row<'a> {
    Row {
        id,
        default: false,
        arch: "-",
        origin: "-",
        modules: 0,
        size_bytes: 0,
        broken: Some(reason.to_owned()),
    }
}
