//! Rate limits of devices, seen from both ends: what went through is never more than a limit lets through in the time that
//! has passed since before the machine was started, whatever else the host has to do.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Instant;

use crate::support::{Ended, finish, run};

/// Bytes a second, and what a full bucket and a burst beside it come to.
struct Limit {
    flag: &'static str,
    rate: f64,
    at_once: f64,
}

const LIMIT: Limit = Limit { flag: "2M/s:256K", rate: 2097152.0, at_once: (2 << 20 | 256 << 10) as f64 };
/// Far more than a bucket holds.
const BYTES: usize = 5 << 20;
/// The largest frame, which a bucket may go into debt for.
const FRAME: f64 = 65_600.0;

impl Limit {
    fn check(&self, what: &str, bytes: usize, since: Instant) {
        let most = self.at_once + FRAME + self.rate * since.elapsed().as_secs_f64();
        assert!((bytes as f64) < most, "{what}: {bytes} bytes, and {most} are the most");
    }
}

/// Runs `script` in a machine beside `serve`, which is what it connects to.
fn beside(flags: &[&str], script: &str, serve: impl FnOnce(TcpStream) + Send + 'static) -> Option<Ended> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || serve(listener.accept().unwrap().0));
    let script = format!("exec 3<>/dev/tcp/10.0.2.2/{port}; {script}");
    let all = [flags, &["--host-loopback", "debian", "--", "bash", "-c", &script]].concat();
    let ended = finish(run(&all)?);
    assert_eq!(ended.code(), 0, "{ended:?}");
    server.join().unwrap();
    Some(ended)
}

#[test]
fn what_a_machine_sends_is_limited() {
    let since = Instant::now();
    let receive = move |mut stream: TcpStream| {
        let (mut buffer, mut count) = (vec![0; 64 << 10], 0);
        while count < BYTES {
            let len = stream.read(&mut buffer).unwrap();
            assert_ne!(len, 0, "{count} of {BYTES} bytes came");
            count += len;
            LIMIT.check("sent", count, since);
        }
        // The machine, with what it has not sent yet, goes on as long as its command does.
        stream.write_all(b"all\n").unwrap();
    };
    let rate = format!("tx:{}", LIMIT.flag);
    beside(&["--net-rate", &rate], &format!("head -c {BYTES} /dev/zero >&3; read -r answer <&3"), receive);
}

#[test]
fn what_a_machine_receives_is_limited_and_the_other_way_is_not() {
    let since = Instant::now();
    let send = move |mut stream: TcpStream| {
        stream.write_all(&vec![7; BYTES]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        LIMIT.check("received", BYTES, since);
        assert_eq!(said.trim(), BYTES.to_string());
    };
    // The other way has a limit of its own, which acknowledgements do not reach.
    let rate = format!("rx:{}", LIMIT.flag);
    beside(&["--net-rate", &rate, "--net-rate", "tx:100000ops"], "wc -c <&3 >&3", send);
}

#[test]
fn what_a_machine_reads_of_its_disk_is_limited_by_bytes_and_by_requests() {
    let script = "dd if=/dev/vda of=/dev/null bs=64k count=80 iflag=direct 2>/dev/null && echo done";
    for (rate, least) in [("2M:256K", (BYTES as f64 - LIMIT.at_once) / LIMIT.rate), ("40ops", 1.0)] {
        let since = Instant::now();
        let Some(command) = run(&["--disk-rate", rate, "debian", "--", "sh", "-c", script]) else { return };
        let ended = finish(command);
        assert_eq!(ended.stdout, "done\n", "{ended:?}");
        // Not before: how much later is the host's affair.
        let took = since.elapsed().as_secs_f64();
        assert!(took >= least, "{rate}: {BYTES} bytes in {took} s");
    }
}

#[test]
fn limits_that_nothing_would_keep_are_refused() {
    for (flags, words) in [
        (&["--net-rate", "1M"][..], &["--net-rate", "no network"][..]),
        (
            &["--isolation", "container", "--net-rate", "1M", "--network", "user"],
            &["--net-rate", "container"],
        ),
        (&["--disk-rate", "0"], &["--disk-rate"]),
        (&["--net-rate", "up:1M", "--network", "user"], &["--net-rate"]),
    ] {
        let Some(command) = run(&[flags, &["debian", "--", "true"]].concat()) else { return };
        let ended = finish(command);
        assert_eq!(ended.code(), 2, "{ended:?}");
        assert!(words.iter().all(|word| ended.stderr.contains(word)), "{ended:?}");
    }
}

#[test]
fn the_disk_of_a_container_is_throttled_where_control_groups_can() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: containers are root's");
    }
    let script = "cat /sys/fs/cgroup/io.max /sys/fs/cgroup/blkio/blkio.throttle.*_device 2>/dev/null; true";
    let flags = ["--isolation", "container", "--disk-rate", "3M,70ops", "debian", "--", "sh", "-c", script];
    let Some(command) = run(&flags) else { return };
    let ended = finish(command);
    if ended.code() == 0 {
        assert!(ended.stdout.contains("3145728") && ended.stdout.contains("70"), "{ended:?}");
    } else {
        // What it says is why: no disk below the store, or no controller for it.
        let reason = ["is on no disk of this host", "limit of blkio"];
        assert!(reason.iter().any(|reason| ended.stderr.contains(reason)), "{ended:?}");
    }
    let burst = ["--isolation", "container", "--disk-rate", "3M:1M", "debian", "--", "true"];
    finish(run(&burst).unwrap()).expect_failure(2, &["--disk-rate", "burst"]);
}
