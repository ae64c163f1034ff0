//! `POST /commit` and `GET /containers/NAME/changes`.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::params::Params;
use super::{App, json, pull};
use crate::backend::CommitOptions;
use crate::error::{ApiError, Result};
use crate::unnamed;

/// What the program says about a change.
#[derive(Deserialize)]
struct Change {
    kind: String,
    path: String,
}

/// `GET /containers/NAME/changes`
pub(super) async fn changes(State(app): App, Path(name): Path<String>) -> Result {
    let folder = app.find(name).await?;
    let output = app
        .blocking(move |backend| {
            let output = backend.changes(&folder)?.stdin(std::process::Stdio::null()).output();
            output.map_err(|error| ApiError::failed(format!("compare the files: {error}")))
        })
        .await?;
    let changes: Vec<Change> = serde_json::from_slice(&said(output)?)
        .map_err(|error| ApiError::failed(format!("compare the files: {error}")))?;
    let row = |change: &Change| {
        let kind = match change.kind.as_str() {
            "added" => 1,
            "deleted" => 2,
            _ => 0,
        };
        json!({ "Path": change.path, "Kind": kind })
    };
    // Docker says null where nothing is changed; its clients take an empty list as well.
    Ok(json(StatusCode::OK, &changes.iter().map(row).collect::<Vec<_>>()))
}

/// What a program wrote, or docker's error for why it did not.
fn said(output: std::process::Output) -> Result<Vec<u8>> {
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().find(|line| line.starts_with("strata: ")).unwrap_or("it ended early");
    let line = line.strip_prefix("strata: ").unwrap_or(line);
    Err(match output.status.code() {
        Some(2) => ApiError::bad(line),
        Some(5) => ApiError::conflict(line),
        _ => ApiError::failed(line),
    })
}

/// `POST /commit`
pub(super) async fn commit(State(app): App, params: Params, body: Bytes) -> Result {
    let container = params.get("container").ok_or_else(|| ApiError::bad("container: which one?"))?;
    let folder = app.find(container.to_owned()).await?;
    let name = pull::name_of(&params)?;
    let said_by_client: Value = if body.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(&body).map_err(|error| ApiError::bad(format!("config: {error}")))?
    };
    if !matches!(said_by_client, Value::Null | Value::Object(_)) {
        return Err(ApiError::bad("config: it is no object"));
    }
    let text = |name| params.get(name).unwrap_or_default().to_owned();
    let mut changes = pull::changes(&params);
    changes.extend(instructions(&said_by_client));
    let options = CommitOptions {
        image: Some(name.to_string()),
        author: text("author"),
        message: text("comment"),
        changes,
        // Docker's default.
        pause: params.get("pause").is_none() || params.flag("pause"),
    };
    let id = app
        .blocking(move |backend| {
            let output = backend.commit(&folder, &options)?.stdin(std::process::Stdio::null()).output();
            let output = output.map_err(|error| ApiError::failed(format!("commit: {error}")))?;
            let id = String::from_utf8_lossy(&said(output)?).trim().to_owned();
            unnamed::settle(backend.store(), &name)?;
            Ok(id)
        })
        .await?;
    Ok(json(StatusCode::CREATED, &json!({ "Id": id })))
}

/// The instructions that a config comes to.
fn instructions(config: &Value) -> Vec<String> {
    let list = |key: &str| config[key].as_array().filter(|list| !list.is_empty());
    let word = |key: &str| config[key].as_str().filter(|text| !text.is_empty());
    let quoted = |text: &str| json!(text).to_string().replace('$', "\\$");
    let mut all = Vec::new();
    for (key, name) in [("Entrypoint", "ENTRYPOINT"), ("Cmd", "CMD")] {
        all.extend(list(key).map(|words| format!("{name} {}", json!(words))));
    }
    for entry in list("Env").into_iter().flatten().filter_map(Value::as_str) {
        all.extend(entry.split_once('=').map(|(name, value)| format!("ENV {name}={}", quoted(value))));
    }
    for (name, value) in config["Labels"].as_object().into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        all.push(format!("LABEL {}={}", quoted(name), quoted(value)));
    }
    for (key, name) in [("WorkingDir", "WORKDIR"), ("User", "USER")] {
        all.extend(word(key).map(|text| format!("{name} {text}")));
    }
    for port in config["ExposedPorts"].as_object().into_iter().flatten() {
        all.push(format!("EXPOSE {}", port.0));
    }
    all.retain(|line| !line.contains(['\n', '\r']));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_told_as_instructions() {
        let config = json!({
            "Cmd": ["a", "b"], "Entrypoint": null, "Env": ["X=1 2", "HOME"], "Labels": {"k": "$v"}, "User": "web",
            "ExposedPorts": {"80/tcp": {}},
        });
        let lines = instructions(&config);
        assert_eq!(
            lines,
            ["CMD [\"a\",\"b\"]", "ENV X=\"1 2\"", "LABEL \"k\"=\"\\$v\"", "USER web", "EXPOSE 80/tcp"]
        );
        assert!(instructions(&Value::Null).is_empty());
    }
}
