//! Docker's `config.json`: `auths`, `credHelpers`, `credsStore`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::GeneralPurpose;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use serde_json::{Map, Value, json};

use super::{Credentials, helper, host_of_key, key_of};
use crate::error::{Cause, shown};

/// Bytes of the file.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// Whatever wrote the file: with padding or without.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Docker's file of credentials.
#[derive(Debug, Clone)]
pub struct CredentialFile {
    path: PathBuf,
}

impl CredentialFile {
    /// `$DOCKER_CONFIG/config.json`, or `~/.docker/config.json`; nothing when there is no home folder.
    pub fn of_user() -> Option<CredentialFile> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
        Some(CredentialFile::at(folder.join("config.json")))
    }

    /// The file at `path`, which need not be there.
    pub fn at(path: PathBuf) -> CredentialFile {
        CredentialFile { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is for the registry `domain`.
    ///
    /// # Errors
    /// The file makes no sense, or the program it names fails.
    pub fn get(&self, domain: &str) -> Result<Option<Credentials>, Cause> {
        let config = self.read()?;
        if let Some(name) = helper_for(&config, domain) {
            return helper::get(&name, key_of(domain));
        }
        let Some(entries) = config.get("auths").and_then(Value::as_object) else { return Ok(None) };
        let exact = entries.get(key_of(domain));
        let old = || entries.iter().find(|(key, _)| host_of_key(key) == domain).map(|(_, entry)| entry);
        match exact.or_else(old) {
            Some(entry) => decode(entry).map_err(|reason| self.invalid(format!("{domain}: {reason}"))),
            None => Ok(None),
        }
    }

    /// Keeps `credentials` for the registry `domain`. Says where: the path, or the program.
    ///
    /// # Errors
    /// The file makes no sense or cannot be written, or the program fails.
    pub fn set(&self, domain: &str, credentials: &Credentials) -> Result<String, Cause> {
        let mut config = self.read()?;
        let helper = helper_for(&config, domain);
        let entry = match (&helper, credentials) {
            (Some(name), credentials) => {
                helper::store(name, key_of(domain), credentials)?;
                // Docker lists here what the program has, and no more.
                json!({})
            }
            (None, Credentials::Password { user, password }) => {
                json!({ "auth": STANDARD.encode(format!("{user}:{password}")) })
            }
            (None, Credentials::IdentityToken(token)) => {
                json!({ "auth": STANDARD.encode("<token>:"), "identitytoken": token })
            }
        };
        let entries = config.entry("auths").or_insert_with(|| json!({}));
        let Some(entries) = entries.as_object_mut() else {
            return Err(self.invalid("auths is no object".to_string()));
        };
        entries.retain(|key, _| host_of_key(key) != domain);
        entries.insert(key_of(domain).to_string(), entry);
        self.write(&config)?;
        Ok(helper.map_or_else(|| self.path.display().to_string(), |name| format!("docker-credential-{name}")))
    }

    /// Forgets what there is for the registry `domain`. False when there was nothing.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn remove(&self, domain: &str) -> Result<bool, Cause> {
        let mut config = self.read()?;
        let mut known = false;
        if let Some(name) = helper_for(&config, domain) {
            known = helper::erase(&name, key_of(domain))?;
        }
        if let Some(entries) = config.get_mut("auths").and_then(Value::as_object_mut) {
            let before = entries.len();
            entries.retain(|key, _| host_of_key(key) != domain);
            if entries.len() < before {
                known = true;
                self.write(&config)?;
            }
        }
        Ok(known)
    }

    fn invalid(&self, reason: String) -> Cause {
        Cause::Credentials(format!("{}: {reason}", self.path.display()))
    }

    fn failed(&self, act: &'static str) -> impl FnOnce(io::Error) -> Cause {
        let path = self.path.clone();
        move |source| Cause::CredentialFile { act, path, source }
    }

    fn read(&self) -> Result<Map<String, Value>, Cause> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
            Err(e) => return Err(self.failed("read")(e)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(self.failed("read"))?;
        if bytes.trim_ascii().is_empty() {
            return Ok(Map::new());
        }
        serde_json::from_slice(&bytes).map_err(|e| self.invalid(shown(&e.to_string())))
    }

    /// Replaces the file, so that a reader sees the old or the new one; readable for its owner alone.
    fn write(&self, config: &Map<String, Value>) -> Result<(), Cause> {
        // Dotfiles are often links into another folder.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder).map_err(self.failed("write"))?;
        let temp = path.with_file_name(format!(".config.json.{}", std::process::id()));
        let mut text = serde_json::to_vec_pretty(config).map_err(|e| self.invalid(e.to_string()))?;
        text.push(b'\n');
        let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp);
        let written = written.and_then(|mut file| file.write_all(&text).and_then(|()| file.sync_all()));
        let renamed = written.and_then(|()| fs::rename(&temp, &path));
        if renamed.is_err() {
            let _ = fs::remove_file(&temp);
        }
        renamed.map_err(self.failed("write"))
    }
}

/// The program that keeps what is for `domain`, if the file names one.
fn helper_for(config: &Map<String, Value>, domain: &str) -> Option<String> {
    let text = |value: &Value| value.as_str().filter(|name| !name.is_empty()).map(str::to_string);
    let helpers = config.get("credHelpers").and_then(Value::as_object);
    let own = helpers.and_then(|helpers| {
        let exact = helpers.get(key_of(domain)).or_else(|| helpers.get(domain));
        exact.or_else(|| helpers.iter().find(|(key, _)| host_of_key(key) == domain).map(|(_, name)| name))
    });
    own.or_else(|| config.get("credsStore")).and_then(text)
}

/// One entry of `auths`; nothing when it holds nothing.
fn decode(entry: &Value) -> Result<Option<Credentials>, &'static str> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials::IdentityToken(token.to_string())));
    }
    if let Some(encoded) = text("auth") {
        let bytes = LENIENT.decode(encoded.trim()).map_err(|_| "auth is not base64")?;
        let decoded = String::from_utf8(bytes).map_err(|_| "auth is not text")?;
        let (user, password) = decoded.split_once(':').ok_or("auth is not USER:PASSWORD")?;
        // Docker pads with zeros that mean nothing.
        let password = password.trim_end_matches('\0');
        if user.is_empty() {
            return Err("auth has no user");
        }
        return Ok(Some(Credentials::Password { user: user.to_string(), password: password.to_string() }));
    }
    match (text("username"), text("password")) {
        (Some(user), Some(password)) => {
            Ok(Some(Credentials::Password { user: user.to_string(), password: password.to_string() }))
        }
        _ => Ok(None),
    }
}
