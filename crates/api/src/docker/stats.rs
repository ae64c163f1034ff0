//! `GET /containers/NAME/stats`: what a workload takes of the host.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use futures_util::stream;
use serde_json::{Value, json};
use workload::log::rfc3339;
use workload::{Folder, now_ms};

use super::params::Params;
use super::{App, Shared, json};
use crate::backend::Usage;
use crate::error::Result;
use crate::machines::Traffic;

/// From one answer to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// What was seen, and when.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    at_ms: u64,
    usage: Usage,
    traffic: Traffic,
    host_cpu_ns: u64,
}

/// `GET /containers/NAME/stats`
pub(super) async fn stats(State(app): App, Path(name): Path<String>, params: Params) -> Result {
    let folder = app.find(name).await?;
    let streams = params.get("stream").is_none() || params.flag("stream");
    if !streams {
        let first = if params.flag("one-shot") { Seen::default() } else { look(&app, &folder).await? };
        if first.at_ms != 0 {
            tokio::time::sleep(PERIOD).await;
        }
        let second = look(&app, &folder).await?;
        return Ok(json(StatusCode::OK, &describe(&folder, &first, &second)));
    }
    let first = Seen::default();
    let lines = stream::unfold((app, folder, first, false), |(app, folder, before, is_late)| async move {
        if is_late {
            tokio::time::sleep(PERIOD).await;
        }
        // It ends with the workload's removal.
        if !folder.path().exists() {
            return None;
        }
        let now = look(&app, &folder).await.ok()?;
        let line = format!("{}\n", describe(&folder, &before, &now));
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(line)), (app, folder, now, true)))
    });
    let head = [(header::CONTENT_TYPE, "application/json")];
    Ok((StatusCode::OK, head, Body::from_stream(lines)).into_response())
}

async fn look(app: &Arc<Shared>, folder: &Folder) -> Result<Seen> {
    let folder = folder.clone();
    app.blocking(move |backend| {
        let usage = backend.usage(&folder).unwrap_or_default();
        let traffic = backend.traffic(&folder).unwrap_or_default();
        Ok(Seen { at_ms: now_ms(), usage, traffic, host_cpu_ns: host_cpu_ns() })
    })
    .await
}

/// Processor time that all of the host has used, as docker has it: busy or not.
fn host_cpu_ns() -> u64 {
    const NS_PER_TICK: u64 = 10_000_000;
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    line.split_whitespace().skip(1).take(7).filter_map(|n| n.parse::<u64>().ok()).sum::<u64>() * NS_PER_TICK
}

/// Bytes of memory that the host has.
pub(super) fn host_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() << 10
}

/// Processors that the host has.
pub(super) fn host_cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn describe(folder: &Folder, before: &Seen, now: &Seen) -> Value {
    let cpu = |seen: &Seen| {
        json!({
            "cpu_usage": { "total_usage": seen.usage.cpu_ns, "usage_in_kernelmode": 0, "usage_in_usermode": seen.usage.cpu_ns },
            "system_cpu_usage": seen.host_cpu_ns,
            "online_cpus": host_cpus(),
            "throttling_data": { "periods": 0, "throttled_periods": 0, "throttled_time": 0 },
        })
    };
    let time = |ms| if ms == 0 { "0001-01-01T00:00:00Z".to_owned() } else { rfc3339(ms) };
    let Usage { memory_bytes, memory_limit, pids, .. } = now.usage;
    json!({
        "id": folder.description().id,
        "name": format!("/{}", folder.description().name),
        "read": time(now.at_ms),
        "preread": time(before.at_ms),
        "cpu_stats": cpu(now),
        "precpu_stats": cpu(before),
        "memory_stats": { "usage": memory_bytes, "limit": memory_limit.unwrap_or_else(host_memory), "stats": {} },
        "pids_stats": { "current": pids },
        "blkio_stats": { "io_service_bytes_recursive": disks(now.traffic) },
        "networks": cards(now.traffic),
        "num_procs": 0,
        "storage_stats": {},
    })
}

/// All disks as one: clients add them up.
fn disks(traffic: Traffic) -> Option<Value> {
    let block = traffic.block?;
    let row = |op: &str, value: u64| json!({ "major": 0, "minor": 0, "op": op, "value": value });
    Some(json!([row("read", block.read_bytes), row("write", block.written_bytes)]))
}

/// All cards as one.
fn cards(traffic: Traffic) -> Value {
    let Some(network) = traffic.network else { return json!({}) };
    json!({ "eth0": { "rx_bytes": network.received_bytes, "tx_bytes": network.sent_bytes } })
}
