//! Rate limits of a workload's devices: of a machine's by token buckets in the device, of a container's by the kernel.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use api::Throttle;
use container::spec::{self, BlockIo};
use machine::MachineConfig;
use machine::config::{Bucket, Limits, MAX_TOKENS};

use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::size::{parse_duration, parse_size};

/// What the command may move at most.
#[derive(Clone, Debug, Default, clap::Args, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Rate limits")]
pub struct Flags {
    /// Bytes or frames that a microVM's network card may move, each way, or with rx: or tx: one way; may be repeated. E.g.
    /// 10M is 10 MiB a second, 1M/100ms:64M the same in smaller portions after 64 MiB at once, tx:500ops,2M both of one way
    #[arg(long, value_name = "[rx:|tx:]N[ops][/TIME][:BURST][,…]", value_parser = check_net)]
    net_rate: Vec<String>,
    /// Bytes or requests that a microVM may read of its image's disk, or a container read and write of the disk that the
    /// store is on, each, where control groups of this host limit that: bytes and requests in any time, without a burst
    #[arg(long, value_name = "N[ops][/TIME][:BURST][,…]", value_parser = check)]
    disk_rate: Option<String>,
    /// Limits of disks of this host. For clients of the API.
    #[arg(skip)]
    throttles: Vec<Throttle>,
}

impl Flags {
    /// With limits of disks of this host.
    pub fn throttle(&mut self, throttles: &[Throttle]) {
        throttles.clone_into(&mut self.throttles);
    }

    /// Whether each says something to a container.
    ///
    /// # Errors
    /// One does not.
    pub fn check_container(&self) -> Outcome<()> {
        if self.net_rate.is_empty() {
            return Ok(());
        }
        let text =
            "run with --net-rate: a container's packets go through no device that could hold them back";
        Err(Failure::new(text).exit(Exit::Usage).hint("leave out --isolation container"))
    }

    /// Limits the devices of a machine.
    ///
    /// # Errors
    /// A device that it does not have.
    pub fn apply(&self, config: &mut MachineConfig) -> Outcome<()> {
        let wrong = |flag: &'static str| {
            move |reason: String| Failure::new(format!("{flag}: {reason}")).exit(Exit::Usage)
        };
        if let Some(text) = &self.disk_rate {
            let limits = parse(text).map_err(wrong("--disk-rate"))?;
            config.disks.iter_mut().for_each(|disk| disk.rate = Some(limits));
        }
        if !self.net_rate.is_empty() && config.net.is_empty() {
            let failure = Failure::new("--net-rate: the machine has no network").exit(Exit::Usage);
            return Err(failure.hint("add --network user"));
        }
        for text in &self.net_rate {
            let (way, limits) = parse_net(text).map_err(wrong("--net-rate"))?;
            for card in &mut config.net {
                if way != Way::Tx {
                    card.rx_rate = Some(limits);
                }
                if way != Way::Rx {
                    card.tx_rate = Some(limits);
                }
            }
        }
        Ok(())
    }

    /// The limits of disks as control groups have them; `store` is on the disk that a container's image is on.
    ///
    /// # Errors
    /// There is no such disk, or a limit that control groups do not know.
    pub fn block_io(&self, store: &Path) -> Outcome<Option<BlockIo>> {
        let mut limits = BlockIo::default();
        if let Some(text) = &self.disk_rate {
            limit_disk_of(store, text, &mut limits)?;
        }
        for throttle in &self.throttles {
            let (major, minor) = block_device(&throttle.path)?;
            let row = spec::Throttle { major, minor, rate: throttle.rate };
            match throttle.of {
                api::Throttled::ReadBytes => limits.throttle_read_bps_device.push(row),
                api::Throttled::WriteBytes => limits.throttle_write_bps_device.push(row),
                api::Throttled::Reads => limits.throttle_read_iops_device.push(row),
                api::Throttled::Writes => limits.throttle_write_iops_device.push(row),
            }
        }
        Ok((limits != BlockIo::default()).then_some(limits))
    }
}

/// Control groups have rates a second for reading and for writing, and no buckets.
fn limit_disk_of(store: &Path, text: &str, limits: &mut BlockIo) -> Outcome<()> {
    let act = || format!("--disk-rate {text}");
    let Limits { bandwidth, ops } =
        parse(text).map_err(|reason| Failure::new(format!("{}: {reason}", act())).exit(Exit::Usage))?;
    if [bandwidth, ops].iter().flatten().any(|bucket| bucket.one_time_burst != 0) {
        let failure = Failure::new(format!("{}: control groups know no burst", act())).exit(Exit::Usage);
        return Err(failure.hint("leave it out, or leave out --isolation container"));
    }
    let (major, minor) = disk_under(store)?;
    let row = |bucket: Bucket| {
        let rate = u128::from(bucket.size) * 1000 / u128::from(bucket.refill_time_ms);
        vec![spec::Throttle { major, minor, rate: u64::try_from(rate).unwrap_or(u64::MAX).max(1) }]
    };
    if let Some(bytes) = bandwidth.map(row) {
        limits.throttle_read_bps_device.clone_from(&bytes);
        limits.throttle_write_bps_device = bytes;
    }
    if let Some(ops) = ops.map(row) {
        limits.throttle_read_iops_device.clone_from(&ops);
        limits.throttle_write_iops_device = ops;
    }
    Ok(())
}

/// The whole disk that the folder `store` is on: only those are limited.
fn disk_under(store: &Path) -> Outcome<(i64, i64)> {
    let act = || format!("--disk-rate: find the disk that {} is on", store.display());
    let dev = std::fs::metadata(store).while_trying(act)?.dev();
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    let device = Path::new("/sys/dev/block").join(format!("{major}:{minor}"));
    if !device.exists() {
        let text = format!("{}: its file system is on no disk of this host", act());
        return Err(Failure::new(text).hint("a store on a disk, with --store, or leave --disk-rate out"));
    }
    if !device.join("partition").exists() {
        return Ok((i64::from(major), i64::from(minor)));
    }
    let whole = device.canonicalize().while_trying(act)?.parent().map(|disk| disk.join("dev"));
    let text = whole.map(std::fs::read_to_string).transpose().while_trying(act)?.unwrap_or_default();
    let numbers = text.trim().split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    numbers.ok_or_else(|| Failure::new(format!("{}: {text:?} is no device", act())))
}

fn block_device(path: &str) -> Outcome<(i64, i64)> {
    let act = || format!("limit the disk {path:?}");
    let meta = std::fs::metadata(path).while_trying(act)?;
    if !meta.file_type().is_block_device() {
        return Err(Failure::new(format!("{}: it is no block device", act())).exit(Exit::Usage));
    }
    Ok((i64::from(rustix::fs::major(meta.rdev())), i64::from(rustix::fs::minor(meta.rdev()))))
}

/// Which frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Both,
    Rx,
    Tx,
}

fn check(text: &str) -> Result<String, String> {
    parse(text).map(|_| text.to_owned())
}

fn check_net(text: &str) -> Result<String, String> {
    parse_net(text).map(|_| text.to_owned())
}

fn parse_net(text: &str) -> Result<(Way, Limits), String> {
    let ways = [("rx:", Way::Rx), ("tx:", Way::Tx)];
    let found = ways.iter().find_map(|(prefix, way)| Some((*way, text.strip_prefix(prefix)?)));
    let (way, rest) = found.unwrap_or((Way::Both, text));
    Ok((way, parse(rest)?))
}

/// `10M`, `10M/s`, `1M/100ms:64M`, `500ops`, or one of each.
fn parse(text: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for part in text.split(',') {
        let (rate, burst) = part.split_once(':').map_or((part, None), |(rate, burst)| (rate, Some(burst)));
        let (amount, time) = rate.split_once('/').unwrap_or((rate, "s"));
        let ops = amount.strip_suffix("ops");
        let number = |text: &str| match ops {
            Some(_) => text.parse().map_err(|_| format!("{text:?} is no number of operations")),
            None => parse_size(text),
        };
        let bucket = Bucket {
            size: number(ops.unwrap_or(amount))?,
            one_time_burst: burst.map_or(Ok(0), number)?,
            refill_time_ms: milliseconds(time)?,
        };
        let place = if ops.is_some() { &mut limits.ops } else { &mut limits.bandwidth };
        if place.replace(bucket).is_some() {
            return Err("a limit of bytes, one of operations, or both: none twice".to_owned());
        }
    }
    limits.check().map(|()| limits).map_err(|reason| format!("{reason}; {MAX_TOKENS} is the most"))
}

/// `s` is a second, as `1s` is.
fn milliseconds(text: &str) -> Result<u64, String> {
    let is_unit = !text.is_empty() && text.bytes().all(|c| c.is_ascii_alphabetic());
    let time: Duration = parse_duration(&if is_unit { format!("1{text}") } else { text.to_owned() })?;
    u64::try_from(time.as_millis()).map_err(|_| "out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(size: u64, one_time_burst: u64, refill_time_ms: u64) -> Option<Bucket> {
        Some(Bucket { size, one_time_burst, refill_time_ms })
    }

    #[test]
    fn limits_are_amounts_in_a_time_and_a_burst() {
        let limits = |bandwidth, ops| Ok(Limits { bandwidth, ops });
        assert_eq!(parse("10M"), limits(bucket(10 << 20, 0, 1000), None));
        assert_eq!(parse("10M/s"), parse("10M"));
        assert_eq!(parse("1M/100ms:64M"), limits(bucket(1 << 20, 64 << 20, 100), None));
        assert_eq!(parse("500ops/2s:7"), limits(None, bucket(500, 7, 2000)));
        assert_eq!(parse("4K/m,1ops"), limits(bucket(4096, 0, 60_000), bucket(1, 0, 1000)));
        assert_eq!(parse_net("tx:1M").map(|(way, _)| way), Ok(Way::Tx));
        assert_eq!(parse_net("rx:1M").map(|(way, _)| way), Ok(Way::Rx));
        assert_eq!(parse_net("1M").map(|(way, _)| way), Ok(Way::Both));
    }

    #[test]
    fn what_is_no_limit_is_refused() {
        let wrong = [
            "",
            "0",
            "x",
            "1M/",
            "1M/0s",
            "1M:",
            "ops",
            "0ops",
            "1M,2M",
            "1ops,2ops",
            "1M,",
            "1M/s/s",
            "1M/9999d",
        ];
        for text in wrong {
            assert!(parse(text).is_err(), "{text:?} was taken");
        }
        assert!(parse_net("up:1M").is_err() && parse_net("rx:").is_err());
    }

    #[test]
    fn a_machine_without_a_card_has_nothing_to_limit() {
        let mut config = MachineConfig::new(machine::config::Source::File("k".into()));
        let flags = Flags { net_rate: vec!["rx:1M".to_owned(), "2M".to_owned()], ..Flags::default() };
        assert!(flags.apply(&mut config).is_err());
        config.net.push(machine::config::NetConfig::new([2; 6]));
        flags.apply(&mut config).unwrap();
        let two = Some(Limits { bandwidth: bucket(2 << 20, 0, 1000), ops: None });
        assert_eq!((config.net[0].rx_rate, config.net[0].tx_rate), (two, two), "the last one counts");
        assert!(flags.check_container().is_err() && Flags::default().check_container().is_ok());
    }

    #[test]
    fn control_groups_have_rates_a_second_of_disks_that_are_there() {
        let mut limits = BlockIo::default();
        let flags = |text: &str| Flags { disk_rate: Some(text.to_owned()), ..Flags::default() };
        assert!(flags("1M:2M").block_io(Path::new("/")).is_err(), "a burst");
        assert!(flags("1M").block_io(Path::new("/proc")).is_err(), "no disk");
        assert_eq!(Flags::default().block_io(Path::new("/none")).unwrap(), None);
        if disk_under(Path::new("/")).is_ok() {
            limit_disk_of(Path::new("/"), "1M/500ms,3ops", &mut limits).unwrap();
            assert_eq!(limits.throttle_write_bps_device[0].rate, 2 << 20);
            assert_eq!(limits.throttle_read_iops_device[0].rate, 3);
        } else {
            println!("skipped: this file system is on no disk");
        }
        let mut flags = Flags::default();
        flags.throttle(&[Throttle { of: api::Throttled::Reads, path: "/dev/null".to_owned(), rate: 1 }]);
        assert!(flags.block_io(Path::new("/")).is_err(), "no block device");
    }
}
