//! `strata login`, `strata logout`: credentials for registries, kept where Docker's tools keep them.

use std::io::{self, BufRead};

use clap::Args;
use image::Reference;
use registry::{CredentialFile, Credentials, Options};

use super::registry::{explain, trust};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::output;
use crate::signals::{ENDING, Watch};
use crate::terminal::{self, Raw};

/// The registry of names without a host.
const DEFAULT_SERVER: &str = "docker.io";
/// Bytes of a password or token.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// Check credentials with a registry and keep them
///
/// They are kept where `docker login` keeps them: in $DOCKER_CONFIG/config.json or ~/.docker/config.json, or with the
/// program that this file names. What is not given is asked for.
#[derive(Args)]
pub struct LoginOptions {
    /// User
    #[arg(short, long)]
    username: Option<String>,
    /// Password or access token; other users of this host can see it, so rather use --password-stdin
    #[arg(short, long, conflicts_with = "password_stdin")]
    password: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    password_stdin: bool,
    #[command(flatten)]
    tls: Tls,
    /// The registry, as it stands in names of images
    #[arg(default_value = DEFAULT_SERVER)]
    server: String,
}

/// How sure the registry must be who it is.
#[derive(Args)]
pub struct Tls {
    /// Refuse a registry without TLS or with a wrong certificate; one on this host needs neither
    #[arg(
        long,
        value_name = "BOOL",
        action = clap::ArgAction::Set,
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true
    )]
    pub tls_verify: bool,
}

/// Forget the credentials for a registry
#[derive(Args)]
pub struct LogoutOptions {
    /// The registry
    #[arg(default_value = DEFAULT_SERVER)]
    server: String,
}

/// Checks credentials and keeps them.
///
/// # Errors
/// The registry does not know them or cannot be asked; they cannot be kept.
pub fn login(options: &LoginOptions) -> Outcome {
    let server = server(&options.server)?;
    let file = file()?;
    let credentials = credentials(options)?;
    let access = Options {
        credentials: Some(credentials.clone()),
        trust: trust(options.tls.tls_verify),
        ..Options::default()
    };
    let act = format!("log in to {server}");
    registry::login(&server, &access).map_err(|error| explain(&act, &server, error))?;
    let place =
        file.set(&server, &credentials).while_trying(|| format!("keep the credentials for {server}"))?;
    eprintln!("strata: the credentials for {server} are kept in {}", output::visible(&place));
    Ok(Exit::Success)
}

/// Forgets credentials.
///
/// # Errors
/// The file or the program that keeps them fails.
pub fn logout(options: &LogoutOptions) -> Outcome {
    let server = server(&options.server)?;
    let file = file()?;
    let known = file.remove(&server).while_trying(|| format!("forget the credentials for {server}"))?;
    let result = if known { "are forgotten" } else { "were not kept" };
    eprintln!("strata: credentials for {server} {result}");
    Ok(Exit::Success)
}

fn file() -> Outcome<CredentialFile> {
    let failure = || {
        Failure::new("find the file of credentials: neither DOCKER_CONFIG nor HOME is set")
            .hint("name its folder with DOCKER_CONFIG=DIR")
    };
    CredentialFile::of_user().ok_or_else(failure)
}

/// The host of a registry, as users write it: alone, or as the beginning of a URL.
fn server(text: &str) -> Outcome<String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let host = host.split('/').next().unwrap_or_default();
    let name: Result<Reference, image::Error> = format!("{host}/x").parse();
    match name {
        // A word that is no host is part of a name in the default registry.
        Ok(name) if name.domain() == host || host == "index.docker.io" => Ok(name.domain().to_owned()),
        _ => Err(Failure::new(format!("understand {text:?}: it is no host of a registry"))
            .hint("such as registry.example or localhost:5000")
            .exit(Exit::Usage)),
    }
}

fn credentials(options: &LoginOptions) -> Outcome<Credentials> {
    let user = match &options.username {
        Some(user) => user.clone(),
        None => ask("Username: ")?,
    };
    let password = match &options.password {
        Some(password) => password.clone(),
        None if options.password_stdin => read_secret(io::stdin().lock())?,
        None => ask_hidden("Password: ")?,
    };
    let credentials = Credentials::password(user.trim(), &password);
    credentials.map_err(|cause| Failure::because("log in", cause).exit(Exit::Usage))
}

/// The first line of a reader.
fn read_secret(reader: impl BufRead) -> Outcome<String> {
    let mut line = String::new();
    reader.take(MAX_SECRET_BYTES).read_line(&mut line).while_trying(|| "read standard input".to_owned())?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask(prompt: &str) -> Outcome<String> {
    if !terminal::stdin_is_terminal() {
        let failure = Failure::new("ask for credentials: standard input is no terminal").exit(Exit::Usage);
        return Err(failure.hint("give them with --username USER --password-stdin"));
    }
    eprint!("{prompt}");
    read_secret(io::stdin().lock())
}

fn ask_hidden(prompt: &str) -> Outcome<String> {
    let _signals = Watch::start(&ENDING, |number| {
        // Nothing but the terminal has to be put in order.
        terminal::restore_in_signal();
        eprintln!();
        std::process::exit(Exit::Signal(u8::try_from(number).unwrap_or(0)).code().into());
    })?;
    let hidden = terminal::stdin_is_terminal().then(Raw::hide).transpose()?;
    let secret = ask(prompt);
    drop(hidden);
    secret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_however_it_is_written() {
        for (text, want) in [
            ("docker.io", "docker.io"),
            ("https://index.docker.io/v1/", "docker.io"),
            ("registry.example", "registry.example"),
            ("http://localhost:5000/", "localhost:5000"),
            ("[::1]:5000", "[::1]:5000"),
        ] {
            assert_eq!(server(text).unwrap(), want);
        }
        for text in ["", "debian", "a b", "user@host.example", "/x"] {
            assert!(server(text).is_err(), "{text}");
        }
    }
}
