//! Programs that keep credentials: `docker-credential-<name>`, which speak JSON over their standard streams.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use super::Credentials;
use crate::error::{Cause, shown};

/// Bytes of what such a program may say.
const MAX_OUTPUT_BYTES: u64 = 1 << 20;
/// The user of an identity token.
const TOKEN_USER: &str = "<token>";
/// How every helper says that it has nothing.
const NOT_FOUND: &str = "credentials not found";

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Record {
    #[serde(default, rename = "ServerURL")]
    server_url: String,
    username: String,
    secret: String,
}

/// What the helper `name` has for `key`.
pub(super) fn get(name: &str, key: &str) -> Result<Option<Credentials>, Cause> {
    let output = match call(name, "get", key.as_bytes())? {
        Ok(output) => output,
        Err(said) if said.contains(NOT_FOUND) => return Ok(None),
        Err(said) => return Err(failed(name, &said)),
    };
    let record: Record =
        serde_json::from_slice(&output).map_err(|e| failed(name, &format!("its answer: {e}")))?;
    Ok(match record {
        Record { username, secret, .. } if username == TOKEN_USER => Some(Credentials::IdentityToken(secret)),
        Record { username, secret, .. } if username.is_empty() || secret.is_empty() => None,
        Record { username, secret, .. } => Some(Credentials::Password { user: username, password: secret }),
    })
}

/// Gives the helper something to keep.
pub(super) fn store(name: &str, key: &str, credentials: &Credentials) -> Result<(), Cause> {
    let (username, secret) = match credentials {
        Credentials::Password { user, password } => (user.clone(), password.clone()),
        Credentials::IdentityToken(token) => (TOKEN_USER.to_string(), token.clone()),
    };
    let record = Record { server_url: key.to_string(), username, secret };
    let input = serde_json::to_vec(&record).map_err(|e| failed(name, &e.to_string()))?;
    call(name, "store", &input)?.map(drop).map_err(|said| failed(name, &said))
}

/// Has the helper forget. False when there was nothing.
pub(super) fn erase(name: &str, key: &str) -> Result<bool, Cause> {
    match call(name, "erase", key.as_bytes())? {
        Ok(_) => Ok(true),
        Err(said) if said.contains(NOT_FOUND) => Ok(false),
        Err(said) => Err(failed(name, &said)),
    }
}

fn failed(name: &str, said: &str) -> Cause {
    Cause::Credentials(format!("docker-credential-{}: {}", shown(name), shown(said)))
}

/// Runs the helper. The inner error is what it said when it failed.
fn call(name: &str, verb: &str, input: &[u8]) -> Result<Result<Vec<u8>, String>, Cause> {
    // The name completes that of a program, it is no path.
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err(Cause::Credentials(format!("{:?} is no name of a credential helper", shown(name))));
    }
    let mut command = Command::new(format!("docker-credential-{name}"));
    command.arg(verb).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut child = command.spawn().map_err(|e| failed(name, &format!("run it: {e}")))?;
    let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
    // One line in, then one document out: no pipe fills up. A helper that reads nothing is its own answer.
    drop(stdin.map(|mut stdin| stdin.write_all(input)));
    let mut output = Vec::new();
    let read = stdout.map_or(Ok(0), |stdout| stdout.take(MAX_OUTPUT_BYTES).read_to_end(&mut output));
    let status = child.wait().map_err(|e| failed(name, &e.to_string()))?;
    read.map_err(|e| failed(name, &e.to_string()))?;
    Ok(if status.success() { Ok(output) } else { Err(String::from_utf8_lossy(&output).into_owned()) })
}
