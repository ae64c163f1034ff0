//! `POST /containers/NAME/update`: other limits.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bollard_stubs::models::{HostConfig, RestartPolicy};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{App, create, json};
use crate::backend::Limits;
use crate::error::{ApiError, Result};

/// What can be changed, and what a client says beside it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Wanted {
    memory: Option<i64>,
    #[serde(rename = "NanoCpus", alias = "NanoCPUs")]
    nano_cpus: Option<i64>,
    cpu_quota: Option<i64>,
    cpu_period: Option<i64>,
    pids_limit: Option<i64>,
    restart_policy: Option<RestartPolicy>,
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

/// `POST /containers/NAME/update`
pub(super) async fn update(
    State(app): App,
    Path(name): Path<String>,
    body: std::result::Result<Json<Wanted>, JsonRejection>,
) -> Result {
    let Json(wanted) = body?;
    let limits = limits(wanted)?;
    let folder = app.find(name).await?;
    app.blocking(move |backend| Ok(backend.update(&folder, &limits)?)).await?;
    Ok(json(StatusCode::OK, &json!({ "Warnings": [] })))
}

/// Zero and nothing leave a limit as it is; what cannot be changed is not silently left out.
fn limits(wanted: Wanted) -> Result<Limits> {
    let is_said = |name: &str, value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => {
            let is_none = number.as_i64() == Some(0);
            // No swap is limited here, so one without limit is what there is.
            !(is_none || name == "MemorySwap" && number.as_i64() == Some(-1))
        }
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    };
    let refused: Vec<&str> = wanted
        .others
        .iter()
        .filter(|(name, value)| is_said(name, value))
        .map(|(name, _)| name.as_str())
        .collect();
    if !refused.is_empty() {
        return Err(ApiError::not_offered(format!("update {}: not there yet", refused.join(", "))));
    }
    let negative = [wanted.memory, wanted.nano_cpus, wanted.cpu_quota, wanted.cpu_period];
    if negative.iter().any(|value| value.is_some_and(|value| value < 0)) {
        return Err(ApiError::bad("a limit of less than nothing"));
    }
    let host = HostConfig {
        nano_cpus: wanted.nano_cpus,
        cpu_quota: wanted.cpu_quota,
        cpu_period: wanted.cpu_period,
        ..HostConfig::default()
    };
    // Docker's command sends a policy without a name when it is not asked to change it.
    let policy = wanted.restart_policy.filter(|policy| {
        policy.name.as_ref().is_some_and(|name| *name != bollard_stubs::models::RestartPolicyNameEnum::EMPTY)
    });
    Ok(Limits {
        memory: wanted.memory.and_then(|bytes| u64::try_from(bytes).ok()).filter(|bytes| *bytes > 0),
        millicpus: create::millicpus(&host),
        pids_limit: wanted.pids_limit.filter(|limit| *limit != 0),
        restart: policy.map(|policy| create::restart(Some(policy))).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use workload::Restart;

    fn of(body: Value) -> Result<Limits> {
        limits(serde_json::from_value(body).unwrap())
    }

    #[test]
    fn what_dockers_command_sends_is_understood() {
        let sent = json!({
            "CpuShares": 0, "Memory": 268_435_456, "NanoCpus": 500_000_000, "CgroupParent": "", "BlkioWeightDevice": null,
            "MemorySwap": 0, "OomKillDisable": false, "PidsLimit": null, "Ulimits": null,
            "RestartPolicy": {"Name": "", "MaximumRetryCount": 0}
        });
        let found = of(sent).unwrap();
        assert_eq!((found.memory, found.millicpus, found.pids_limit), (Some(256 << 20), Some(500), None));
        assert_eq!(found.restart, None);
        let policy = of(json!({"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 2}})).unwrap();
        assert_eq!(policy.restart, Some(Restart::OnFailure(Some(2))));
        assert_eq!(of(json!({"RestartPolicy": {"Name": "no"}})).unwrap().restart, Some(Restart::No));
        assert_eq!(of(json!({})), Ok(Limits::default()));
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_name() {
        let error = of(json!({"CpusetCpus": "0", "CpuShares": 5})).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (501, "update CpuShares, CpusetCpus: not there yet")
        );
        assert_eq!(of(json!({"Memory": -5})).unwrap_err().status.as_u16(), 400);
    }
}
