//! `strata pull`, `strata push`: images from and to registries.

use clap::Args;
use image::{Platform, Reference, Store};
use registry::{Cause, Credentials, Options, Pulled, Pushed, Trust};

use super::image::parse;
use super::login::Tls;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::progress::Bar;
use crate::{output, store};

/// How to speak to a registry.
#[derive(Args)]
pub struct Access {
    #[command(flatten)]
    tls: Tls,
    /// User and password [default: what `strata login` or `docker login` has kept]
    #[arg(long, value_name = "USER:PASSWORD", hide_default_value = true)]
    creds: Option<String>,
}

impl Access {
    /// What the crate that speaks to registries is told.
    ///
    /// # Errors
    /// The credentials are none.
    pub fn options(&self) -> Outcome<Options> {
        let parse = |text: &String| Credentials::parse(text);
        let credentials = self
            .creds
            .as_ref()
            .map(parse)
            .transpose()
            .map_err(|cause| Failure::because("understand --creds", cause).exit(Exit::Usage))?;
        Ok(Options { credentials, trust: trust(self.tls.tls_verify), ..Options::default() })
    }
}

/// How sure a registry must be who it is.
pub fn trust(tls_verify: bool) -> Trust {
    if tls_verify { Trust::Verify } else { Trust::Anything }
}

/// Bring an image from a registry into the store
///
/// A name without a host means docker.io: `debian` is docker.io/library/debian:latest. What was pulled before is read
/// and not pulled again, unless its bytes have changed in the store; what broke off goes on where it was.
#[derive(Args)]
pub struct PullOptions {
    #[command(flatten)]
    access: Access,
    /// Platform to choose where there are several [default: this host's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
    /// Name of the image
    #[arg(value_name = "REF")]
    name: String,
}

/// Pulls an image; its name goes to standard output.
///
/// # Errors
/// The registry or the store is not as it should be; the message says which.
pub fn pull(global: &Global, options: &PullOptions) -> Outcome {
    let name = parse(&options.name)?;
    let mut access = options.access.options()?;
    access.platform = options.platform.clone().unwrap_or(access.platform);
    let store = store::open(global)?;
    fetch(&store, &name, &access)?;
    output::write(&format!("{name}\n"))?;
    Ok(Exit::Success)
}

/// Pulls an image and says what came of it on standard error.
///
/// # Errors
/// As [`pull`].
pub fn fetch(store: &Store, name: &Reference, access: &Options) -> Outcome<Pulled> {
    let bar = Bar::new();
    let pulled = registry::pull(store, name, access, &bar);
    drop(bar);
    let pulled = pulled.map_err(|error| explain(&format!("pull {name}"), name.domain(), error))?;
    api::tell_image(store, &pulled.image, "pull");
    let news = if pulled.is_new { "new" } else { "up to date" };
    eprintln!("strata: {name} is {news}: {}", pulled.digest);
    Ok(pulled)
}

/// Bring an image from the store to its registry
///
/// Its name says where: give it another with `strata image tag`. What the registry has is not sent again.
#[derive(Args)]
pub struct PushOptions {
    #[command(flatten)]
    access: Access,
    /// Name of the image
    #[arg(value_name = "REF")]
    name: String,
}

/// Pushes an image; its digest goes to standard output.
///
/// # Errors
/// As [`pull`].
pub fn push(global: &Global, options: &PushOptions) -> Outcome {
    let name = parse(&options.name)?;
    let access = options.access.options()?;
    let store = store::open(global)?;
    let bar = Bar::new();
    let pushed = registry::push(&store, &name, &access, &bar);
    drop(bar);
    let pushed = pushed.map_err(|error| explain(&format!("push {name}"), name.domain(), error))?;
    if let Ok(image) = store.image(&name) {
        api::tell_image(&store, &image, "push");
    }
    let Pushed { sent, mounted, present, .. } = pushed;
    eprintln!(
        "strata: {name} is there: {sent} blobs sent, {mounted} taken from other images, {present} had been there"
    );
    output::write(&format!("{}\n", pushed.digest))?;
    Ok(Exit::Success)
}

/// What went wrong with a registry, and what to do about it.
pub fn explain(act: &str, domain: &str, error: registry::Error) -> Failure {
    let hint = match error.cause() {
        Cause::Store(error) if error.is_not_found() => Some("strata image ls shows what there is".to_owned()),
        Cause::Unauthorized { given: false, .. } => Some(format!("strata login {domain}")),
        Cause::Unauthorized { given: true, .. } => {
            Some(format!("strata login {domain} with other credentials, or --creds USER:PASSWORD"))
        }
        Cause::Tls { .. } => {
            let folder = format!("/etc/docker/certs.d/{domain}");
            Some(format!(
                "put its authority's certificate into {folder}/ca.crt, or trust it with --tls-verify=false"
            ))
        }
        Cause::Lookup { .. } | Cause::Connection { .. } | Cause::Stalled { .. } => {
            Some("is the network up? HTTPS_PROXY and NO_PROXY are respected".to_owned())
        }
        Cause::NoPlatform { .. } => Some("choose one of these with --platform".to_owned()),
        _ => None,
    };
    let failure = Failure::because(act, error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
