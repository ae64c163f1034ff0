//! Hostile bundles, and hostile programs inside of containers; what they did is looked at from outside.
//!
//! Each test that names a CVE was seen to fail with the guard it is about taken out of the runtime.

use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::support::bundle::Bundle;
use crate::support::{Ended, finish, run, start};
use crate::validation::listener::{hear, wait_for_a_call};

/// A path inside of a root that would lead to `outside` if `..` could leave.
fn up_to(outside: &Path) -> String {
    format!("{}{}", "../".repeat(20), outside.display())
}

/// What a program has to find in a root to be run there at all.
fn with_libraries(bundle: &Bundle) {
    let listed = Command::new("ldd").arg(&bundle.program).output().unwrap();
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for path in text.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
        let inside = bundle.rootfs().join(path.strip_prefix("/").unwrap());
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        std::fs::copy(path, inside).unwrap();
    }
}

#[test]
fn cve_2019_5736_the_runtimes_own_program_cannot_be_written() {
    // Something inside waits for the runtime to execute itself there, opens its program file through /proc, and writes
    // to it as soon as nobody executes it any more.
    let attack = "until [ -e /seen ]; do for p in /proc/[0-9]*; do \
                  case \"$(readlink $p/exe)\" in *busybox|'') ;; *) exec 3<$p/exe && echo opened > /seen;; esac; done; done; \
                  until [ -e /gone ]; do sleep 0.02; done; \
                  (echo x > /proc/self/fd/3) 2> /error && echo written >> /seen; echo tried >> /seen";
    let Some(mut bundle) = Bundle::new(attack) else { return };
    // A copy: this test would destroy the real one.
    let copy = bundle.path("strata-copy");
    std::fs::copy(&bundle.program, &copy).unwrap();
    bundle.program = copy.clone();
    with_libraries(&bundle);
    bundle.config["root"]["readonly"] = json!(false);
    bundle.add_mount("/tmp", "tmpfs", "tmpfs", &[]);
    let before = std::fs::read(&copy).unwrap();
    let container = bundle.create(&[]);
    container.start();
    // This one of ours waits inside for its input.
    let victim =
        ["exec", &container.id, "/proc/self/exe", "oci", "--root", "/tmp", "update", "--resources", "-", "x"];
    let mut exec = bundle.oci(&victim);
    let mut exec = exec.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let seen = bundle.rootfs().join("seen");
    container.wait_until("opened", || seen.exists());
    exec.stdin.take().unwrap().write_all(b"{").unwrap();
    exec.wait().unwrap();
    std::fs::write(bundle.rootfs().join("gone"), "").unwrap();
    // Not by asking the program, which may be none any more.
    container.wait_until("tried", || std::fs::read_to_string(&seen).unwrap().ends_with("tried\n"));
    let error = std::fs::read_to_string(bundle.rootfs().join("error")).unwrap();
    assert!(std::fs::read(&copy).unwrap() == before, "the program was changed");
    assert_eq!(std::fs::read_to_string(seen).unwrap(), "opened\ntried\n", "{error}");
    assert!(error.contains("Read-only") || error.contains("not permitted"), "{error}");
}

#[test]
fn cve_2019_16884_proc_cannot_be_put_elsewhere_or_covered() {
    // The image's /proc is a link, or something is mounted over what it shows: labels would be written to a forged one.
    let Some(bundle) = Bundle::new("true") else { return };
    std::fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
    symlink("/elsewhere", bundle.rootfs().join("proc")).unwrap();
    bundle.refused(&["/proc", "link"]);
    for (destination, kind, source) in [
        ("/proc/self/attr", "tmpfs", "tmpfs"),
        ("/proc/self", "bind", "forged"),
        ("/proc/1/../self/attr", "bind", "forged"),
        ("/proc", "tmpfs", "tmpfs"),
        ("/proc", "bind", "forged"),
        ("/link", "tmpfs", "tmpfs"),
        ("/proc/sys", "tmpfs", "tmpfs"),
    ] {
        let Some(mut bundle) = Bundle::new("true") else { return };
        std::fs::create_dir(bundle.path("forged")).unwrap();
        symlink("/proc/self/attr", bundle.rootfs().join("link")).unwrap();
        let options: &[&str] = if kind == "bind" { &["bind"] } else { &[] };
        bundle.add_mount(destination, kind, source, options);
        bundle.refused(&[destination]);
    }
    let Some(bundle) = Bundle::new("true") else { return };
    symlink("/elsewhere", bundle.rootfs().join("sys")).unwrap();
    bundle.refused(&["/sys", "link"]);
}

#[test]
fn cve_2021_30465_mounts_do_not_leave_the_root_through_links() {
    // A volume's folder is a link to the host.
    let Some(mut bundle) = Bundle::new("cat /target/file") else { return };
    let outside = bundle.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(bundle.path("source")).unwrap();
    std::fs::write(bundle.path("source/file"), "inside\n").unwrap();
    symlink(up_to(&outside), bundle.rootfs().join("target")).unwrap();
    bundle.config["root"]["readonly"] = json!(false);
    for destination in ["/target", "/target/made", "/target/made/file"] {
        bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "bind");
        bundle.add_mount(destination, "bind", "source", &["bind"]);
        // The link leads to nowhere inside, which is no place to mount on.
        assert_ne!(bundle.run().code(), 0, "{destination}");
        assert_eq!(outside.read_dir().unwrap().count(), 0, "{destination}");
    }
    // Devices and their folders go the same way.
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["type"] != "bind");
    bundle.config["linux"]["devices"] = json!([{ "path": "/target/d", "type": "c", "major": 1, "minor": 3 }]);
    assert_ne!(bundle.run().code(), 0);
    assert_eq!(outside.read_dir().unwrap().count(), 0);
}

#[test]
fn cve_2021_30465_nor_while_somebody_exchanges_folders_for_links() {
    let Some(mut bundle) = Bundle::new("true") else { return };
    let outside = bundle.path("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(bundle.path("source")).unwrap();
    let (folder, link) = (bundle.rootfs().join("swap"), bundle.rootfs().join("link"));
    std::fs::create_dir(&folder).unwrap();
    symlink(up_to(&outside), &link).unwrap();
    bundle.config["root"]["readonly"] = json!(false);
    bundle.add_mount("/swap/made/deep", "bind", "source", &["bind"]);
    bundle.add_mount("/swap/more", "tmpfs", "tmpfs", &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here = rustix::fs::CWD;
            while !done.load(Ordering::Relaxed) {
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(here, &folder, here, &link, exchange).unwrap();
            }
        });
        let made: Vec<bool> = (0..100)
            .map(|_| {
                for place in [&folder, &link] {
                    let _ = std::fs::remove_dir_all(place.join("made"));
                }
                bundle.run();
                outside.read_dir().unwrap().count() != 0
            })
            .collect();
        done.store(true, Ordering::Relaxed);
        assert!(!made.contains(&true), "something was made outside of the root");
    });
}

#[test]
fn cve_2024_21626_the_working_directory_is_no_descriptor_of_the_runtime() {
    let Some(mut bundle) = Bundle::new("ls ../../../../..; pwd") else { return };
    for number in 3..24 {
        let descriptor = format!("/proc/self/fd/{number}");
        let link = bundle.rootfs().join(format!("link{number}"));
        symlink(&descriptor, &link).unwrap();
        for cwd in [descriptor, format!("/link{number}"), format!("/proc/thread-self/fd/{number}/..")] {
            bundle.config["process"]["cwd"] = json!(cwd);
            let ended = bundle.run();
            assert_ne!(ended.code(), 0, "{cwd}: {ended:?}");
            assert_eq!(ended.stdout, "", "{cwd}");
        }
    }
    // The same for a command that comes later.
    bundle.config["process"]["cwd"] = json!("/");
    bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let container = bundle.create(&[]);
    container.start();
    for number in 3..24 {
        for cwd in [format!("/proc/self/fd/{number}"), format!("/link{number}")] {
            let ended = bundle.act(&["exec", "--cwd", &cwd, &container.id, "/bin/pwd"]);
            assert_ne!(ended.code(), 0, "{cwd}: {ended:?}");
        }
    }
}

#[test]
fn cve_2024_21626_nor_a_folder_that_leaves_the_root_once_it_was_entered() {
    // Between the moment it goes there and the command, somebody who shares the files moves the folder out of the root. A filter that
    // notifies of a call in between holds the process for as long as that takes.
    let Some(mut bundle) = Bundle::new("ls .. && pwd") else { return };
    let (folder, outside) = (bundle.rootfs().join("folder"), bundle.path("outside"));
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["process"]["cwd"] = json!("/folder");
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bundle.path("agent"),
        "syscalls": [{ "names": ["umask"], "action": "SCMP_ACT_NOTIFY" }],
    });
    let listener = UnixListener::bind(bundle.path("agent")).unwrap();
    let runs = |bundle: &Bundle, arguments: &[&str], leaves: bool| {
        bundle.write();
        std::fs::create_dir(&folder).unwrap();
        let running = start(bundle.oci(arguments));
        let (_, notifications) = hear(&listener);
        wait_for_a_call(&notifications);
        if leaves {
            std::fs::rename(&folder, &outside).unwrap();
        }
        // The call ends with an error now, which nobody minds of this one.
        drop(notifications);
        running
    };
    let clean = || [&folder, &outside].map(|path| drop(std::fs::remove_dir(path)));
    let id = bundle.id();
    for leaves in [false, true] {
        let ended = runs(&bundle, &["run", &id], leaves).finish();
        clean();
        if leaves {
            ended.expect_failure(1, &["/folder", "outside of the root"]);
            assert_eq!(ended.stdout, "");
        } else {
            assert!(ended.code() == 0 && ended.stdout.ends_with("/folder\n"), "{ended:?}");
        }
    }
    // The same for a command that comes later.
    bundle.config["process"]["cwd"] = json!("/");
    bundle.config["process"]["args"] = json!(["/bin/sleep", "1000"]);
    let container = runs(&bundle, &["run", &id], false);
    clean();
    let exec = ["exec", "--cwd", "/folder", &id, "/bin/pwd"];
    let found = [false, true].map(|leaves| {
        let ended = runs(&bundle, &exec, leaves).finish();
        clean();
        ended
    });
    bundle.good(&["delete", "--force", &id]);
    drop(container.finish());
    assert_eq!((found[0].code(), found[0].stdout.as_str()), (0, "/folder\n"), "{found:?}");
    assert_ne!(found[1].code(), 0, "{found:?}");
    assert!(found[1].stdout.is_empty() && found[1].stderr.contains("outside of the root"), "{found:?}");
}

#[test]
fn descriptors_of_the_runtime_are_not_inherited() {
    let look =
        "for n in /proc/self/fd/*; do echo ${n##*/} $(readlink $n); done | grep -vE '^([012]|10) '; true";
    let Some(bundle) = Bundle::new(&format!("{look}; sleep 1000")) else { return };
    let container = bundle.create(&[]);
    container.start();
    let ended = bundle.act(&["exec", &container.id, "/bin/sh", "-c", look]);
    // What is open in `/proc/self/fd` while it is listed, is no more when it is looked at.
    let left: Vec<&str> =
        ended.stdout.lines().filter(|line| line.contains(' ') && line.contains('/')).collect();
    assert!(ended.code() == 0 && left.is_empty(), "{ended:?}");
    let pid = container.state()["pid"].as_i64().unwrap();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let number: u32 = entry.file_name().to_string_lossy().parse().unwrap();
        assert!(number < 3 || number == 10, "{entry:?}: {:?}", std::fs::read_link(entry.path()));
    }
}

#[test]
fn cve_2025_31133_a_mask_is_the_hosts_null_device() {
    // The image's /dev/null is a link to what is to be read and written.
    let script = "cat /secret; stat -c '%F %t:%T' /secret; echo gone > /secret; cat /prize";
    let Some(mut bundle) = Bundle::new(script) else { return };
    for file in ["secret", "prize"] {
        std::fs::write(bundle.rootfs().join(file), format!("{file}\n")).unwrap();
    }
    std::fs::create_dir(bundle.path("dev")).unwrap();
    symlink("/prize", bundle.path("dev/null")).unwrap();
    bundle.config["root"]["readonly"] = json!(false);
    bundle.config["linux"]["maskedPaths"] = json!(["/secret"]);
    let is_dev = |mount: &Value| mount["destination"].as_str().unwrap().starts_with("/dev");
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| !is_dev(mount));
    // A /dev that comes with the bundle: nothing is made in it.
    bundle.add_mount("/dev", "bind", "dev", &["bind"]);
    assert_eq!(bundle.output(), "character special file 1:3\nprize\n");
    assert_eq!(std::fs::read_to_string(bundle.rootfs().join("prize")).unwrap(), "prize\n");
    // Without one, a link in the place of a device is refused.
    let Some(mut bundle) = Bundle::new(script) else { return };
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| !is_dev(mount));
    std::fs::create_dir(bundle.rootfs().join("dev")).unwrap();
    symlink("/prize", bundle.rootfs().join("dev/null")).unwrap();
    bundle.refused(&["/dev/null", "something else"]);
}

#[test]
fn a_console_is_not_bound_through_a_link() {
    // CVE-2025-52565. Two things stand against it here: the place is resolved inside, and none is made through a link.
    let Some(mut bundle) = Bundle::new("stat -c %F /prize") else { return };
    std::fs::write(bundle.rootfs().join("prize"), "prize\n").unwrap();
    std::fs::create_dir(bundle.path("dev")).unwrap();
    std::fs::create_dir(bundle.path("dev/pts")).unwrap();
    let outside = bundle.path("outside");
    symlink(up_to(&outside), bundle.path("dev/console")).unwrap();
    let is_dev = |mount: &Value| mount["destination"] == "/dev";
    bundle.config["mounts"].as_array_mut().unwrap().retain(|mount| !is_dev(mount));
    let dev = json!({ "destination": "/dev", "type": "bind", "source": "dev", "options": ["bind"] });
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, dev);
    bundle.config["process"]["terminal"] = json!(true);
    assert_ne!(bundle.run().code(), 0);
    assert!(!outside.exists(), "a file was made outside of the root");
}

/// Runs a script with perl at hand under everything `strata run` does by default; nothing without image or rights.
fn inside(script: &str) -> Option<Ended> {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: containers are tested as root");
        return None;
    }
    Some(finish(run(&["--isolation", "container", "debian", "--", "sh", "-c", script])?))
}

#[test]
fn hostile_programs_do_not_reach_the_host() {
    let host = tempfile::tempdir().unwrap();
    std::fs::write(host.path().join("sentinel"), "untouched\n").unwrap();
    let mut victim = Command::new("sleep").arg("1000").spawn().unwrap();
    let pattern = || std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap();
    let name = || rustix::system::uname().nodename().to_owned();
    let before = (pattern(), name());
    let (pid, folder) = (victim.id(), host.path().display());
    let root = rustix::fs::stat("/").unwrap().st_dev;
    let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
    // Each attempt is a line; what works says so.
    let script = format!(
        "try() {{ what=\"$1\"; shift; if sh -c \"$*\" >/dev/null 2>&1; then echo \"worked: $what\"; fi; }}
         try core_pattern 'echo \"|/x\" > /proc/sys/kernel/core_pattern'
         try sysrq 'echo h > /proc/sysrq-trigger'
         try sysctl 'echo 1 > /proc/sys/vm/drop_caches'
         try uevent 'echo /x > /sys/kernel/uevent_helper'
         try sysfs 'echo 0 > /sys/devices/system/cpu/cpu1/online'
         try hostname 'hostname gotcha'
         try kcore 'head -c 1 /proc/kcore | grep -q .'
         try keys 'grep -q . /proc/keys'
         try mount 'mount -t tmpfs tmpfs /mnt'
         try proc 'mount -t proc proc /mnt'
         try cgroup 'mkdir /tmp/c && mount -t cgroup -o memory cgroup /tmp/c'
         try release_agent 'for f in $(find /sys/fs/cgroup -name release_agent); do echo /x > $f && exit 0; done; exit 1'
         try leave_group 'for f in $(find /sys/fs/cgroup -maxdepth 2 -name cgroup.procs); do echo 1 > $f && exit 0; done; exit 1'
         try limits 'for f in $(find /sys/fs/cgroup -name pids.max); do echo max > $f && exit 0; done; exit 1'
         try user_namespace 'unshare -U true'
         try user_namespace_clone 'unshare -Ur mount -t tmpfs tmpfs /mnt'
         try join 'nsenter -t 1 -m true'
         try disk 'mknod /tmp/disk b {major} {minor} && head -c 512 /tmp/disk | grep -q .'
         try memory_device 'mknod /tmp/mem c 1 1 && head -c 16 /tmp/mem | grep -q .'
         try kmsg 'mknod /tmp/kmsg c 1 11 && head -c 16 /tmp/kmsg | grep -q .'
         try kill 'kill -9 {pid}'
         try sentinel 'test -e {folder}/sentinel'
         try root_of_init 'test -e /proc/1/root{folder}/sentinel'
         try root_of_parent 'test -e /proc/self/root/../../..{folder}/sentinel'
         try chroot 'perl -e \"mkdir q{{/tmp/r}}; opendir my \\$d, q{{/}}; chroot q{{/tmp/r}} or exit 1; chdir \\$d; chdir q{{..}} for 1..99; chroot q{{.}}; exit !-e q{{{folder}/sentinel}}\"'
         try process_of_host 'test -d /proc/{pid}/fd'
         echo done"
    );
    let ended = inside(&script);
    let lives = victim.try_wait().unwrap().is_none();
    victim.kill().unwrap();
    victim.wait().unwrap();
    let Some(ended) = ended else { return };
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "done\n"), "{}", ended.stderr);
    assert!(lives, "a process of the host was killed");
    assert_eq!((pattern(), name()), before);
    assert_eq!(std::fs::read_to_string(host.path().join("sentinel")).unwrap(), "untouched\n");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_that_reach_the_kernels_insides_are_refused() {
    // Name, number, and arguments with which the call would otherwise fail in another way, or work.
    let calls = "mount:165 umount2:166 pivot_root:155 swapon:167 reboot:169 sethostname:170 iopl:172 \
                 init_module:175 delete_module:176 quotactl:179 acct:163 settimeofday:164 add_key:248 \
                 request_key:249 keyctl:250 mbind:237 set_mempolicy:238 get_mempolicy:239 kexec_load:246 \
                 unshare:272 move_pages:279 perf_event_open:298 fanotify_init:300 open_by_handle_at:304 \
                 setns:308 kcmp:312 finit_module:313 kexec_file_load:320 bpf:321 userfaultfd:323 \
                 open_tree:428 move_mount:429 fsopen:430 fsconfig:431 fsmount:432 fspick:433 \
                 pidfd_getfd:438 process_madvise:440 mount_setattr:442 quotactl_fd:443 io_uring_setup:425 \
                 io_uring_enter:426 io_uring_register:427 lookup_dcookie:212 vhangup:153 syslog:103 ustat:136 \
                 sysfs:139 nfsservctl:180 uselib:134";
    let list: String = calls.split_whitespace().map(|call| format!("{call} ")).collect();
    let script = format!(
        "perl -e 'for (split / /, q{{{list}}}) {{ my ($n, $c) = split /:/; $! = 0; \
         my $r = syscall($c, -1, -1, -1, -1, -1); print qq{{$n: $r $!\\n}} if $r != -1 || ($!{{EPERM}} == 0 && $!{{ENOSYS}} == 0); }} \
         for my $f (38, 40) {{ socket(my $s, $f, 1, 0) and print qq{{socket $f\\n}} }} \
         syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0 and print qq{{clone with a user namespace\\n}}; \
         syscall(435, 0, 0) == -1 && $!{{ENOSYS}} or print qq{{clone3: $!\\n}}; \
         syscall(135, 0x0400000) == -1 && $!{{EPERM}} or print qq{{personality\\n}}; \
         print qq{{done\\n}}'"
    );
    let Some(ended) = inside(&script) else { return };
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "done\n"), "{ended:?}");
}
