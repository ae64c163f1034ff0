//! Flags that say how to see whether a workload is well, and what the image says about it.

use std::time::Duration;

use image::Healthcheck;
use workload::{HealthCheck, HealthTest};

use crate::size::parse_duration;

/// What the user says about it.
#[derive(clap::Args, Clone, serde::Serialize, serde::Deserialize)]
#[command(next_help_heading = "Options of workloads in the background")]
pub struct Flags {
    /// Command for the shell in the workload that ends with 0 when all is well [default: the image's]
    #[arg(long, value_name = "COMMAND", conflicts_with = "no_healthcheck")]
    health_cmd: Option<String>,
    /// Time from one check to the next [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    health_interval: Option<Duration>,
    /// A check that takes longer has failed [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    health_timeout: Option<Duration>,
    /// Failures in a row that make it unhealthy [default: the image's, or 3]
    #[arg(long, value_name = "TIMES", value_parser = clap::value_parser!(u32).range(1..))]
    health_retries: Option<u32>,
    /// How long after the start failures do not count
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    health_start_period: Option<Duration>,
    /// Do not check, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl Flags {
    /// How the workload is checked, if it is.
    pub fn check(&self, image: Option<&Healthcheck>) -> Option<HealthCheck> {
        if self.no_healthcheck {
            return None;
        }
        let test = match (&self.health_cmd, image) {
            (Some(line), _) => Some(HealthTest::shell(line)),
            (None, image) => image.and_then(|image| HealthTest::parse(&image.test)),
        };
        let Some(HealthTest::Command(command)) = test else { return None };
        let nothing = Healthcheck::default();
        let image = image.unwrap_or(&nothing);
        let time = |ours: Option<Duration>, images: u64, default: Duration| {
            let images = Some(Duration::from_nanos(images)).filter(|time| !time.is_zero());
            let time = ours.or(images).unwrap_or(default);
            u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
        };
        Some(HealthCheck {
            command,
            interval_ms: time(self.health_interval, image.interval, HealthCheck::PERIOD),
            timeout_ms: time(self.health_timeout, image.timeout, HealthCheck::PERIOD),
            start_period_ms: time(self.health_start_period, image.start_period, Duration::ZERO),
            retries: self.health_retries.unwrap_or(if image.retries > 0 {
                image.retries
            } else {
                HealthCheck::RETRIES
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags() -> Flags {
        Flags {
            health_cmd: None,
            health_interval: None,
            health_timeout: Some(Duration::from_secs(1)),
            health_retries: None,
            health_start_period: None,
            no_healthcheck: false,
        }
    }

    #[test]
    fn flags_go_before_the_image_and_that_before_what_docker_does() {
        let image = |test: &[&str]| Healthcheck {
            test: test.iter().map(|word| (*word).to_owned()).collect(),
            interval: 5_000_000_000,
            timeout: 6_000_000_000,
            ..Healthcheck::default()
        };
        let check = flags().check(Some(&image(&["CMD-SHELL", "a b"]))).unwrap();
        assert_eq!(check.command, ["/bin/sh", "-c", "a b"]);
        assert_eq!((check.interval_ms, check.timeout_ms), (5000, 1000));
        assert_eq!((check.start_period_ms, check.retries), (0, 3));
        assert_eq!(flags().check(Some(&image(&["CMD", "a", "b"]))).unwrap().command, ["a", "b"]);
        for none in [&["NONE"][..], &[], &["CMD"], &["CMD-SHELL"], &["FLY", "x"]] {
            assert_eq!(flags().check(Some(&image(none))), None, "{none:?}");
        }
        assert_eq!(flags().check(None), None);
        let own = Flags { health_cmd: Some("mine".to_owned()), ..flags() };
        assert_eq!(own.check(Some(&image(&["NONE"]))).unwrap().command, ["/bin/sh", "-c", "mine"]);
        let not = Flags { no_healthcheck: true, ..flags() };
        assert_eq!(not.check(Some(&image(&["CMD", "a"]))), None);
    }
}
