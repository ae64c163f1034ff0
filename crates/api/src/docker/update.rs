//! `POST /containers/NAME/update`: other limits.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use bollard_stubs::models::{HostConfig, RestartPolicy};
use serde::Deserialize;
use serde_json::{Value, json};
use workload::Folder;

use super::{App, create, json, tuning};
use crate::backend::Limits;
use crate::error::{ApiError, Result};

/// Microseconds of a period that nobody said.
const PERIOD_US: i64 = 100_000;

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
    cpu_shares: Option<i64>,
    cpuset_cpus: Option<String>,
    cpuset_mems: Option<String>,
    memory_reservation: Option<i64>,
    memory_swap: Option<i64>,
    blkio_weight: Option<i64>,
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
    let folder = app.find(name).await?;
    let limits = limits(completed(wanted, &folder))?;
    app.blocking(move |backend| Ok(backend.update(&folder, &limits)?)).await?;
    Ok(json(StatusCode::OK, &json!({ "Warnings": [] })))
}

/// A quota is one of a period, which may have been said before, and the other way round.
fn completed(mut wanted: Wanted, folder: &Folder) -> Wanted {
    let said = folder.description().wanted.said.as_ref().and_then(|said| said.get("HostConfig"));
    let before = |key: &str| said.and_then(|host| host.get(key)).and_then(Value::as_i64);
    let is_said = |number: Option<i64>| number.is_some_and(|number| number != 0);
    match (is_said(wanted.cpu_quota), is_said(wanted.cpu_period)) {
        (true, false) => wanted.cpu_period = before("CpuPeriod"),
        (false, true) => wanted.cpu_quota = before("CpuQuota"),
        _ => {}
    }
    wanted
}

/// Zero and nothing leave a limit as it is; what cannot be changed is not silently left out.
fn limits(wanted: Wanted) -> Result<Limits> {
    let is_said = |value: &Value| match value {
        Value::Null | Value::Bool(false) => false,
        Value::Number(number) => number.as_i64() != Some(0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        Value::Bool(true) => true,
    };
    let refused: Vec<&str> =
        wanted.others.iter().filter(|(_, value)| is_said(value)).map(|(name, _)| name.as_str()).collect();
    if !refused.is_empty() {
        return Err(ApiError::not_offered(format!("update {}: not there yet", refused.join(", "))));
    }
    let negative = [
        wanted.memory,
        wanted.nano_cpus,
        wanted.cpu_quota,
        wanted.cpu_period,
        wanted.cpu_shares,
        wanted.memory_reservation,
    ];
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
    let positive = |number: Option<i64>| number.filter(|number| *number > 0);
    let text = |text: Option<String>| text.filter(|text| !text.is_empty());
    let period = positive(wanted.cpu_period).unwrap_or(PERIOD_US);
    let restart_word = policy.as_ref().and_then(|policy| policy.name).map(|name| name.to_string());
    Ok(Limits {
        restart_word,
        memory: positive(wanted.memory).map(i64::unsigned_abs),
        millicpus: create::millicpus(&host),
        quota: positive(wanted.cpu_quota)
            .filter(|_| positive(wanted.nano_cpus).is_none())
            .map(|quota| (quota, period)),
        cpu_shares: positive(wanted.cpu_shares).map(i64::unsigned_abs),
        cpuset_cpus: text(wanted.cpuset_cpus),
        cpuset_mems: text(wanted.cpuset_mems),
        memory_reservation: positive(wanted.memory_reservation),
        memory_swap: wanted.memory_swap.filter(|swap| *swap != 0),
        blkio_weight: tuning::blkio_weight(wanted.blkio_weight)?,
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
        let found =
            of(json!({"CpuQuota": 20_000, "CpuShares": 512, "CpusetCpus": "0", "BlkioWeight": 300})).unwrap();
        assert_eq!((found.millicpus, found.quota), (Some(200), Some((20_000, 100_000))));
        assert_eq!(
            (found.cpu_shares, found.cpuset_cpus.as_deref(), found.blkio_weight),
            (Some(512), Some("0"), Some(300))
        );
    }

    #[test]
    fn what_cannot_be_changed_is_refused_by_name() {
        let error = of(json!({"KernelMemory": 7, "CpuRealtimePeriod": 5})).unwrap_err();
        assert_eq!(
            (error.status.as_u16(), error.message.as_str()),
            (501, "update CpuRealtimePeriod, KernelMemory: not there yet")
        );
        assert_eq!(of(json!({"BlkioWeight": 5})).unwrap_err().status.as_u16(), 400);
        assert_eq!(of(json!({"Memory": -5})).unwrap_err().status.as_u16(), 400);
    }
}
