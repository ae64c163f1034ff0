//! `strata run --volume`: a command in a machine and the files of its host.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::{Ended, finish, run};

/// Runs `script` in a machine that sees `folder` at `/data`; `more` stands behind that in the flag.
fn in_machine(start: &str, folder: &Path, more: &str, script: &str) -> Option<Ended> {
    let volume = format!("{}:/data{more}", folder.display());
    let flags = ["--start", start, "--volume", &volume, "debian", "--", "sh", "-ec", script];
    Some(finish(run(&flags)?))
}

#[test]
fn files_go_both_ways_whether_the_guest_booted_or_not() {
    for how in ["warm", "cold"] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/here"), "from the host\n").unwrap();
        fs::set_permissions(folder.path().join("sub/here"), fs::Permissions::from_mode(0o640)).unwrap();
        let script = "cat /data/sub/here; stat -c '%a %s' /data/sub/here; \
                      umask 027; echo from the guest >/data/sub/there; chmod 4751 /data/sub/there; mkdir /data/new";
        let Some(ended) = in_machine(how, folder.path(), "", script) else { return };
        assert_eq!((ended.code(), &*ended.stdout), (0, "from the host\n640 14\n"), "{ended:?}");
        assert_eq!(fs::read_to_string(folder.path().join("sub/there")).unwrap(), "from the guest\n");
        let made = fs::metadata(folder.path().join("sub/there")).unwrap();
        assert_eq!(made.mode() & 0o7777, 0o4751);
        assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
        assert_eq!(fs::metadata(folder.path().join("new")).unwrap().mode() & 0o7777, 0o750);
    }
}

#[test]
fn a_folder_to_look_at_is_not_changed() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a").unwrap();
    let script = "cat /data/a; set +e; echo b >/data/a; rm /data/a; mkdir /data/d; chmod 777 /data/a; \
                  mount -o remount,bind,rw /data; echo b >/data/a; exit 0";
    let Some(ended) = in_machine("warm", folder.path(), ":ro", script) else { return };
    assert_eq!((ended.code(), &*ended.stdout), (0, "a"), "{ended:?}");
    // Also where the guest's kernel would let it: the server does not.
    assert_eq!(ended.stderr.matches("Read-only file system").count(), 5, "{}", ended.stderr);
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "a");
}

#[test]
fn a_link_leads_to_where_it_points_in_the_guest() {
    let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(outside.path().join("secret"), "secret\n").unwrap();
    symlink(outside.path(), folder.path().join("away")).unwrap();
    symlink("../../../../../../..", folder.path().join("up")).unwrap();
    let outside = outside.path().display();
    let script = format!(
        "test -e /data/up/init -o -d /data/up/usr; test ! -e /data/away/secret; test ! -e /data/up{outside}/secret; \
         ls /data/.. >/dev/null; readlink /data/away"
    );
    let Some(ended) = in_machine("warm", folder.path(), "", &script) else { return };
    assert_eq!((ended.code(), ended.stdout), (0, format!("{outside}\n")), "{}", ended.stderr);
}

#[test]
fn names_links_and_content_behave_as_on_a_disk() {
    let folder = tempfile::tempdir().unwrap();
    let script = "cd /data
        echo one >a; ln a b; stat -c %h a; mv b c; echo two >>c; cat a; rm a; cat c
        echo x >d; mv d c; cat c; mkdir e e/f; mv e g; rmdir g/f g; ln -s c l; cat l
        flock c -c 'echo locked'; perl -e 'open F, \"+<\", \"c\"; flock F, 2 or die; print F \"y\"'; cat c
        truncate -s 5G sparse; stat -c '%s %b' sparse; mkfifo pipe; test -p pipe
        mknod dev c 1 3 2>/dev/null || echo no device
        perl -e 'open F, \">>\", \"c\"; unlink \"c\"; print F \"gone\\n\"; close F or die'; test ! -e c";
    let Some(ended) = in_machine("warm", folder.path(), "", script) else { return };
    let expected = "2\none\ntwo\none\ntwo\nx\nx\nlocked\ny\n5368709120 0\nno device\n";
    assert_eq!((ended.code(), &*ended.stdout), (0, expected), "{}", ended.stderr);
    let mut left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["l", "pipe", "sparse"]);
}

#[test]
fn a_thousand_files_and_a_large_one_arrive_whole() {
    let folder = tempfile::tempdir().unwrap();
    let big: Vec<u8> = (0..40u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(folder.path().join("big"), &big).unwrap();
    let script = "cd /data; mkdir many; i=0; while [ $i -lt 1000 ]; do echo $i >many/$i; i=$((i+1)); done
        ls many | wc -l; cat many/* | sort -n | tail -n 1; cp big copy; cmp big copy
        mkdir packed; tar cf - many | tar xf - -C packed; diff -r many packed/many && echo same";
    let Some(ended) = in_machine("warm", folder.path(), "", script) else { return };
    assert_eq!((ended.code(), &*ended.stdout), (0, "1000\n999\nsame\n"), "{}", ended.stderr);
    assert!(fs::read(folder.path().join("copy")).unwrap() == big);
    assert_eq!(fs::read_dir(folder.path().join("many")).unwrap().count(), 1000);
}

#[test]
fn several_volumes_have_their_places_and_one_may_be_a_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    fs::write(folder.path().join("file"), "alone\n").unwrap();
    fs::write(folder.path().join("beside"), "not shown\n").unwrap();
    let volume = |what: &str| format!("{}/{what}", folder.path().display());
    let (one, two, file) = (volume("one:/srv/x"), volume("two:/srv/x/in/side"), volume("file:/etc/motd"));
    let script = "echo 1 >/srv/x/1; echo 2 >/srv/x/in/side/2; cat /etc/motd; echo more >>/etc/motd; \
                  ls -A /etc | grep beside || echo none; rm /etc/motd 2>/dev/null || echo in use";
    let flags = ["--volume", &two, "--volume", &file, "--volume", &one, "debian", "--", "sh", "-ec", script];
    let Some(command) = run(&flags) else { return };
    let ended = finish(command);
    assert_eq!((ended.code(), &*ended.stdout), (0, "alone\nnone\nin use\n"), "{}", ended.stderr);
    assert!(folder.path().join("one/1").exists() && folder.path().join("two/2").exists());
    assert_eq!(fs::read_to_string(folder.path().join("file")).unwrap(), "alone\nmore\n");
}

#[test]
fn what_is_not_there_or_no_path_is_told_before_anything_starts() {
    let Some(command) = run(&["--volume", "/no/such/folder:/data", "debian", "--", "true"]) else { return };
    let ended = finish(command);
    assert_eq!(ended.code(), 125, "{ended:?}");
    assert!(ended.stderr.contains("/no/such/folder"), "{}", ended.stderr);
    for volume in ["../name:/data", "/tmp:data", "/tmp:/a/../b"] {
        let Some(command) = run(&["--volume", volume, "debian", "--", "true"]) else { return };
        assert_ne!(finish(command).code(), 0, "{volume}");
    }
}
