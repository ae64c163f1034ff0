//! `strata pull`: images from registries.

use clap::{ArgAction, Args};
use image::{Platform, Reference, Store};
use registry::{Cause, Credentials, Options, Pulled, Trust};

use super::image::parse;
use crate::cli::Global;
use crate::exit::Exit;
use crate::failure::{Failure, Outcome};
use crate::progress::Bar;
use crate::{output, store};

/// How to speak to a registry.
#[derive(Args)]
pub struct Access {
    /// Refuse a registry without TLS or with a wrong certificate; one on this host needs neither
    #[arg(
        long,
        value_name = "BOOL",
        action = ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    tls_verify: bool,
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
        Ok(Options { credentials, trust: trust(self.tls_verify), ..Options::default() })
    }
}

/// How sure a registry must be who it is.
pub fn trust(tls_verify: bool) -> Trust {
    if tls_verify { Trust::Verify } else { Trust::Anything }
}

/// Bring an image from a registry into the store
///
/// A name without a host means docker.io: `debian` is docker.io/library/debian:latest. What was pulled before is not
/// pulled again, and what broke off goes on where it was.
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
    let news = if pulled.is_new { "new" } else { "up to date" };
    eprintln!("strata: {name} is {news}: {}", pulled.digest);
    Ok(pulled)
}

/// What went wrong with a registry, and what to do about it.
pub fn explain(act: &str, domain: &str, error: registry::Error) -> Failure {
    let hint = match error.cause() {
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
