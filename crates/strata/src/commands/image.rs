//! `strata image …`: images in the store, and the ways in and out.

mod build;
pub mod more;

use std::path::{Path, PathBuf};

use api::RefusalKind;
use clap::{Args, Subcommand, ValueEnum};
use image::{Bootstrap, Image, Reference, SaveFormat, Store};
use workload::Workloads;

pub use build::runtime as build_runtime;

use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While, each};
use crate::output::{self, Table};
use crate::progress::Bar;
use crate::store;

/// What makes `image bootstrap` work for users other than root.
pub const NOT_ROOT: &str = "as root: apt-get install uidmap, and ranges for this user in /etc/subuid and /etc/subgid; \
    or bring an image: strata image load FILE";

/// Images that workloads are made from
#[derive(Subcommand)]
pub enum Command {
    /// Make a minimal distribution image with the host's package manager
    ///
    /// Calls mmdebstrap or debootstrap with the host's own package sources.
    Bootstrap(BootstrapOptions),
    /// Make an image as a Containerfile says
    ///
    /// What an instruction led to is remembered for two weeks and not done again while nothing of it changes. ADD fetches
    /// nothing.
    Build(build::BuildOptions),
    /// Make an image of one layer from a root file system
    Import(ImportOptions),
    /// Take the images of an oci-archive or docker-archive into the store
    Load(LoadOptions),
    /// Write images to an archive
    Save(SaveOptions),
    /// List the images
    Ls(LsOptions),
    /// Show everything about an image as JSON
    Inspect(InspectOptions),
    /// Give an image more names
    Tag(TagOptions),
    /// Show the steps an image was made in, the newest first
    History(more::HistoryOptions),
    /// Show what an image has changed
    ///
    /// Compared with itself without its last layer, or with another image: A is added, C changed, D deleted. Times do not
    /// count.
    Diff(more::DiffOptions),
    /// Remove names of images, and with the last of them the images
    ///
    /// As docker does: a name that is not the last one goes alone; an id, the beginning of a digest as `image ls` shows it, stands for
    /// all names. Workloads that were made from an image keep it, and are not disturbed by --force.
    Rm(RmOptions),
    /// Remove what no name leads to and nobody uses
    Prune(more::PruneOptions),
}

#[derive(Args)]
pub struct BootstrapOptions {
    /// Name for the image, e.g. debian or debian:12
    name: String,
    /// Release to take the packages from [default: the host's]
    #[arg(long, value_name = "SUITE")]
    suite: Option<String>,
    /// A package beyond the minimal set; may be repeated
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
}

#[derive(Args)]
pub struct ImportOptions {
    /// Tar archive of a root file system, as it is or compressed with gzip, zstd, xz or bzip2
    rootfs: PathBuf,
    /// Name for the image
    name: String,
}

#[derive(Args)]
pub struct LoadOptions {
    /// The archive
    file: PathBuf,
}

#[derive(Args)]
pub struct SaveOptions {
    /// Names of the images, and the file to write
    #[arg(required = true, value_names = ["NAME", "FILE"])]
    names_and_file: Vec<String>,
    /// Kind of the archive
    #[arg(long, value_enum, default_value_t = Format::Oci)]
    format: Format,
}

/// The archives other programs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// oci-archive, the image layout in a tar
    Oci,
    /// docker-archive, as `docker save` writes it
    Docker,
}

#[derive(Args)]
pub struct LsOptions {
    /// Write JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Write the names alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Args)]
pub struct InspectOptions {
    /// Name of the image
    name: String,
    /// Write JSON, as is always done
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct TagOptions {
    /// Name it has
    name: String,
    /// Names it gets, whatever they meant before
    #[arg(required = true)]
    aliases: Vec<String>,
}

#[derive(Args)]
pub struct RmOptions {
    /// Also where an id has several names, or a workload was made from the image: one that runs keeps its id all the same
    #[arg(short, long)]
    force: bool,
    /// Names of the images, or ids
    #[arg(required = true)]
    names: Vec<String>,
}

/// Does what the verb says.
///
/// # Errors
/// The store, the archive or the image is not as it should be; the message says which.
pub fn run(global: &Global, command: &Command) -> Outcome {
    if matches!(command, Command::Build(_)) {
        // RUN lets foreign programs run as root here. Before anything is opened: it starts this program anew.
        container::own_binary::protect()
            .map_err(|error| Failure::new(format!("build: {}", error.chain())))?;
    }
    let store = store::open(global)?;
    match command {
        Command::Bootstrap(options) => bootstrap(&store, options)?,
        Command::Build(options) => build::build(&store, options)?,
        Command::Import(options) => import(&store, options)?,
        Command::Load(options) => load(&store, options)?,
        Command::Save(options) => save(&store, options)?,
        Command::Ls(options) => list(&store, options)?,
        Command::Inspect(options) => {
            let value = store
                .inspect(&parse(&options.name)?)
                .map_err(|error| explain(format!("inspect {:?}", options.name), &options.name, error))?;
            output::json(&value)?;
        }
        Command::Tag(options) => tag(&store, options)?,
        Command::History(options) => more::history(&store, options)?,
        Command::Diff(options) => more::diff(&store, options)?,
        Command::Rm(options) => {
            let workloads = super::workloads::all(global)?;
            return each(&options.names, |name| remove(&store, &workloads, name, options.force));
        }
        Command::Prune(options) => more::prune(&store, options)?,
    }
    Ok(Exit::Success)
}

/// An image name as the user typed it.
///
/// # Errors
/// It is none.
pub fn parse(name: &str) -> Outcome<Reference> {
    name.parse().map_err(|error: image::Error| {
        Failure::because(format!("understand {name:?}"), error).exit(Exit::Usage)
    })
}

/// What went wrong when `act` needed an image, and what to do about it.
pub fn explain(act: String, name: &str, error: image::Error) -> Failure {
    let hint = match &error {
        image::Error::NoImage { .. } => where_from(name),
        image::Error::CorruptBlob { .. } | image::Error::MissingBlob { .. } => {
            "pull, load, import or bootstrap it once more, which mends it; strata check --store looks for more"
                .to_owned()
        }
        _ => return Failure::because(act, error),
    };
    Failure::because(act, error).hint(hint)
}

/// How to come by an image that is not there.
pub fn where_from(name: &str) -> String {
    format!(
        "strata image ls shows what there is; strata pull {name}, or make one: strata image bootstrap {name}"
    )
}

fn bootstrap(store: &Store, options: &BootstrapOptions) -> Outcome<()> {
    let name = parse(&options.name)?;
    let wanted = Bootstrap { suite: options.suite.clone(), packages: options.packages.clone() };
    let made = store.bootstrap(&name, &wanted, &Bar::new());
    let made = made.map_err(|error| {
        let by_tool = matches!(error, image::Error::Tool { .. }) && !rustix::process::geteuid().is_root();
        let failure = Failure::because(format!("bootstrap image {:?}", options.name), error);
        if by_tool { failure.hint(NOT_ROOT) } else { failure }
    })?;
    api::tell_image(store, &made, "import");
    output::write(&format!("{name}\n"))
}

fn import(store: &Store, options: &ImportOptions) -> Outcome<()> {
    let name = parse(&options.name)?;
    let made = store.import(&options.rootfs, &name, &Bar::new());
    let made = made.while_trying(|| format!("import {} as {:?}", options.rootfs.display(), options.name))?;
    api::tell_image(store, &made, "import");
    output::write(&format!("{name}\n"))
}

fn load(store: &Store, options: &LoadOptions) -> Outcome<()> {
    let names =
        store.load(&options.file, &Bar::new()).while_trying(|| format!("load {}", options.file.display()))?;
    names.iter().try_for_each(|name| {
        if let Ok(image) = store.image(name) {
            api::tell_image(store, &image, "load");
        }
        output::write(&format!("{name}\n"))
    })
}

fn save(store: &Store, options: &SaveOptions) -> Outcome<()> {
    let Some((file, names @ [_, ..])) = options.names_and_file.split_last() else {
        return Err(Failure::new("save images: name an image, and a file to write").exit(Exit::Usage));
    };
    let act = || format!("save {} to {file}", names.join(", "));
    let find = |name: &String| {
        store.image(&parse(name)?).map_err(|error| explain(format!("save image {name:?}"), name, error))
    };
    let images = names.iter().map(find).collect::<Outcome<Vec<Image>>>()?;
    let format = match options.format {
        Format::Oci => SaveFormat::OciArchive,
        Format::Docker => SaveFormat::DockerArchive,
    };
    let saved = store.save(&images, Path::new(file), format, &Bar::new());
    saved.map_err(|error| explain(act(), &names[0], error))?;
    images.iter().for_each(|image| api::tell_image(store, image, "save"));
    Ok(())
}

fn list(store: &Store, options: &LsOptions) -> Outcome<()> {
    let images = store.images().while_trying(|| "list images".to_owned())?;
    if options.json {
        return output::json(&images);
    }
    if options.quiet {
        return images.iter().try_for_each(|image| output::write(&format!("{}\n", image.name)));
    }
    let mut table = Table::new(&["NAME", "DIGEST", "CREATED", "LAYERS", "SIZE"]);
    for image in &images {
        let digest = image.digest.chars().take("sha256:".len() + 12).collect();
        let created =
            image.created.as_deref().unwrap_or("-").chars().take("2026-01-01T00:00:00".len()).collect();
        let size = match &image.broken {
            Some(reason) => format!("broken: {}", output::visible(reason)),
            None => output::bytes(image.size_bytes),
        };
        table.row([image.name.clone(), digest, created, image.layers.to_string(), size]);
    }
    table.print()
}

fn tag(store: &Store, options: &TagOptions) -> Outcome<()> {
    let name = parse(&options.name)?;
    // All of them are understood before the first is given.
    let aliases = options.aliases.iter().map(|alias| parse(alias)).collect::<Outcome<Vec<Reference>>>()?;
    let act = || format!("tag {:?}", options.name);
    aliases.iter().try_for_each(|alias| {
        api::tag_image(store, &name, alias).map_err(|error| explain(act(), &options.name, error))
    })
}

fn remove(store: &Store, workloads: &Workloads, name: &str, force: bool) -> Outcome<()> {
    api::remove_image(store, workloads, name, force).map(drop).map_err(|refusal| {
        let failure = Failure::new(format!("remove image {name:?}: {}", refusal.message));
        match refusal.kind {
            RefusalKind::NotFound => failure.hint("strata image ls shows what there is"),
            RefusalKind::Conflict if !force => {
                failure.hint("strata ps -a shows what was made from it; strata image rm --force")
            }
            _ => failure,
        }
    })
}
