//! `GET /metrics`: what runs here and what it takes, in the text form of Prometheus (version 0.0.4).
//!
//! Names follow its conventions: base units, counters end with `_total`, what says what something is ends with `_info`.

use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use workload::{Folder, Status};

use crate::backend::{Backend, Usage};
use crate::docker::{App, Routes};
use crate::error::Result;
use crate::machines::Traffic;

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The kernel tells times in hundredths of a second, whatever its clock (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;
/// What a workload can be.
const STATUSES: [Status; 7] = [
    Status::Created,
    Status::Starting,
    Status::Running,
    Status::Paused,
    Status::Restarting,
    Status::Exited,
    Status::Lost,
];

/// Its one route.
pub(crate) fn routes() -> Routes {
    Router::new().route("/metrics", get(metrics))
}

async fn metrics(State(app): App) -> Result {
    let text = app
        .blocking(|backend| {
            let mut page = Page::default();
            workloads(backend, &mut page)?;
            store(backend, &mut page)?;
            process(&mut page);
            Ok(page.0)
        })
        .await?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

/// A page that is being written.
#[derive(Default)]
struct Page(String);

/// What a value is.
#[derive(Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

type Labels<'a> = &'a [(&'a str, &'a str)];

impl Page {
    /// The head of a family, and what it has: nothing if there is none.
    fn family(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = (String, f64)>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "{name}{labels} {value}");
        }
    }

    fn one(&mut self, name: &str, kind: Kind, help: &str, value: Option<f64>) {
        self.family(name, kind, help, value.map(|value| (String::new(), value)));
    }
}

/// `{name="web",image="debian"}`
fn labels(pairs: Labels<'_>) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            format!("{key}=\"{value}\"")
        })
        .collect();
    format!("{{{}}}", pairs.join(","))
}

/// A workload as it was seen.
struct Seen {
    folder: Folder,
    state: workload::State,
    usage: Option<Usage>,
    traffic: Traffic,
}

impl Seen {
    /// Those it is known by, and more.
    fn labels(&self, more: Labels<'_>) -> String {
        let what = self.folder.description();
        let id = what.id.get(..12).unwrap_or(&what.id);
        labels(&[&[("id", id), ("name", &what.name)], more].concat())
    }
}

/// A family with one value for each workload, or none where there is nothing to tell.
type Each = (&'static str, Kind, &'static str, fn(&Seen) -> Option<f64>);

fn seconds(ms: Option<u64>) -> Option<f64> {
    ms.map(|ms| ms as f64 / 1e3)
}

const EACH: [Each; 13] = [
    ("strata_workload_created_timestamp_seconds", Kind::Gauge, "When it was made.", |seen| {
        seconds(Some(seen.folder.description().created_ms))
    }),
    (
        "strata_workload_started_timestamp_seconds",
        Kind::Gauge,
        "When its command was last started.",
        |seen| seconds(seen.state.started_ms),
    ),
    ("strata_workload_finished_timestamp_seconds", Kind::Gauge, "When its command last ended.", |seen| {
        seconds(seen.state.finished_ms)
    }),
    ("strata_workload_exit_code", Kind::Gauge, "How its command last ended.", |seen| {
        seen.state.exit_code.map(f64::from)
    }),
    ("strata_workload_restarts_total", Kind::Counter, "How often it was started again.", |seen| {
        Some(f64::from(seen.state.restarts))
    }),
    ("strata_workload_cpu_seconds_total", Kind::Counter, "Processor time of the host.", |seen| {
        seen.usage.map(|usage| usage.cpu_ns as f64 / 1e9)
    }),
    ("strata_workload_memory_bytes", Kind::Gauge, "Memory of the host that it has.", |seen| {
        seen.usage.map(|usage| usage.memory_bytes as f64)
    }),
    ("strata_workload_memory_limit_bytes", Kind::Gauge, "Memory that it may have.", |seen| {
        seen.usage?.memory_limit.map(|bytes| bytes as f64)
    }),
    ("strata_workload_threads", Kind::Gauge, "Processes and threads on the host.", |seen| {
        seen.usage.map(|usage| usage.pids as f64)
    }),
    ("strata_workload_network_receive_bytes_total", Kind::Counter, "Bytes that came to it.", |seen| {
        seen.traffic.network.map(|network| network.received_bytes as f64)
    }),
    ("strata_workload_network_transmit_bytes_total", Kind::Counter, "Bytes that it sent.", |seen| {
        seen.traffic.network.map(|network| network.sent_bytes as f64)
    }),
    ("strata_workload_block_read_bytes_total", Kind::Counter, "Bytes read from disks of the host.", |seen| {
        seen.traffic.block.map(|block| block.read_bytes as f64)
    }),
    (
        "strata_workload_block_written_bytes_total",
        Kind::Counter,
        "Bytes written to disks of the host.",
        |seen| seen.traffic.block.map(|block| block.written_bytes as f64),
    ),
];

fn workloads(backend: &dyn Backend, page: &mut Page) -> Result<()> {
    let mut all = Vec::new();
    for folder in backend.workloads().list()? {
        // One that is being removed just now is gone.
        let Ok(state) = folder.state() else { continue };
        let usage = backend.usage(&folder);
        let traffic = usage.and_then(|_| backend.traffic(&folder)).unwrap_or_default();
        all.push(Seen { folder, state, usage, traffic });
    }
    let info = all.iter().map(|seen| {
        let wanted = &seen.folder.description().wanted;
        (seen.labels(&[("image", &wanted.image), ("isolation", &wanted.isolation.to_string())]), 1.0)
    });
    page.family("strata_workload_info", Kind::Gauge, "What a workload is.", info);
    let states = all.iter().flat_map(|seen| {
        let value = |status| f64::from(u8::from(seen.state.status == status));
        STATUSES.map(|status| (seen.labels(&[("state", &status.to_string())]), value(status)))
    });
    let help = "1 for what a workload is just now, 0 for what it is not.";
    page.family("strata_workload_state", Kind::Gauge, help, states);
    for (name, kind, help, value) in EACH {
        page.family(name, kind, help, all.iter().filter_map(|seen| Some((seen.labels(&[]), value(seen)?))));
    }
    Ok(())
}

fn store(backend: &dyn Backend, page: &mut Page) -> Result<()> {
    use Kind::Gauge;
    let images = backend.store().images()?;
    page.one("strata_store_images", Gauge, "Images in the store.", Some(images.len() as f64));
    let size: u64 = images.iter().map(|image| image.size_bytes).sum();
    page.one(
        "strata_store_image_bytes",
        Gauge,
        "Sizes of the images, shared layers counted for each.",
        Some(size as f64),
    );
    let saved = backend.snapshots().unwrap_or_default();
    page.one("strata_store_snapshots", Gauge, "Snapshots in the store.", Some(saved.len() as f64));
    let size: u64 = saved.iter().map(|snapshot| snapshot.size_bytes).sum();
    page.one("strata_store_snapshot_bytes", Gauge, "What the snapshots take on disk.", Some(size as f64));
    let disk = rustix::fs::statvfs(backend.store().root()).ok();
    let of = |blocks: fn(&rustix::fs::StatVfs) -> u64| {
        disk.as_ref().map(|disk| (blocks(disk) * disk.f_frsize) as f64)
    };
    page.one(
        "strata_store_filesystem_size_bytes",
        Gauge,
        "Size of the file system of the store.",
        of(|disk| disk.f_blocks),
    );
    page.one(
        "strata_store_filesystem_avail_bytes",
        Gauge,
        "What is free there for its user.",
        of(|disk| disk.f_bavail),
    );
    Ok(())
}

/// The server itself, under the names that all exporters give these.
fn process(page: &mut Page) {
    use Kind::{Counter, Gauge};
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let number = |at: usize| fields.get(at)?.parse::<f64>().ok();
    let cpu = number(11).zip(number(12)).map(|(user, system)| (user + system) / TICKS_PER_SECOND);
    page.one("process_cpu_seconds_total", Counter, "Processor time of the server.", cpu);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().trim_end_matches(" kB").parse::<f64>().ok()
    };
    let resident = kib("VmRSS:").map(|kib| kib * 1024.0);
    page.one("process_resident_memory_bytes", Gauge, "Memory of the server.", resident);
    page.one("process_virtual_memory_bytes", Gauge, "Address space of the server.", number(20));
    page.one("process_threads", Gauge, "Threads of the server.", number(17));
    let files = std::fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as f64);
    page.one("process_open_fds", Gauge, "Files that the server has open.", files);
    let host = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let boot = host.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
    let start = boot.zip(number(19)).map(|(boot, since)| boot + since / TICKS_PER_SECOND);
    page.one("process_start_time_seconds", Gauge, "When the server was started.", start);
    page.family(
        "strata_build_info",
        Gauge,
        "The build of the server.",
        [(labels(&[("version", env!("CARGO_PKG_VERSION"))]), 1.0)],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_hold_anything() {
        assert_eq!(labels(&[("a", "b"), ("c", "d\\\"\n")]), r#"{a="b",c="d\\\"\n"}"#);
    }

    #[test]
    fn a_family_has_a_head_and_none_without_samples() {
        let mut page = Page::default();
        page.one("x_bytes", Kind::Gauge, "What it is.", Some(1536.0));
        page.one("y_total", Kind::Counter, "Nothing.", None);
        assert_eq!(page.0, "# HELP x_bytes What it is.\n# TYPE x_bytes gauge\nx_bytes 1536\n");
    }

    #[test]
    fn the_server_counts_itself() {
        let mut page = Page::default();
        process(&mut page);
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "start_time_seconds"] {
            let sample = page.0.lines().find(|line| line.starts_with(&format!("process_{name} "))).unwrap();
            let value: f64 = sample.rsplit_once(' ').unwrap().1.parse().unwrap();
            assert!(value >= 0.0, "{sample}");
        }
    }
}
