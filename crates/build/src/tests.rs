//! Whole builds, looked at in the store.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use container::command::Network;
use container::{Root, Upper};
use image::{Image, Missing, NoProgress, NodeKind, Reference, Store, View};

use crate::{Ended, Images, Options, Run, Runner};

type Outside<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// A context, a store, and who runs commands.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    options: Options,
    runs: AtomicU32,
}

impl Images for Bench {
    fn image(&self, name: &Reference) -> Outside<Image> {
        Ok(self.store.image(name)?)
    }
}

impl Runner for Bench {
    fn run(&self, run: &Run<'_>) -> Outside<Ended> {
        self.runs.fetch_add(1, Ordering::Relaxed);
        let upper = run.space.join(run.below.len().to_string());
        fs::create_dir(&upper)?;
        let command = container::command::Command {
            root: Root::Image {
                file: run.file.to_owned(),
                fs_type: run.fs_type.to_owned(),
                below: run.below.to_vec(),
                upper: Upper::Folder(upper.clone()),
            },
            args: run.argv.to_vec(),
            env: run.env.to_vec(),
            cwd: run.cwd.to_owned(),
            user: run.user.to_owned(),
            network: Network::None,
            hostname: String::new(),
            mounts: Vec::new(),
            shm_bytes: None,
            memory_bytes: None,
            rlimits: Vec::new(),
            state: self.dir.path().join("state"),
            id: "build".to_owned(),
        };
        let code = command.run()?.shell_code();
        let written = upper.join("upper");
        let folder: OwnedFd = fs::File::open(&written)?.into();
        let upper = || folder.try_clone().ok();
        let roots = archive::Roots { root: folder.as_fd(), upper: &upper, user: &|_| None };
        let changed = archive::Request::Changes.run(&roots, run.changes.as_fd(), run.changes.as_fd());
        changed.map_err(|error| error.line(|errno| errno.to_string()))?;
        Ok(Ended { code, written: Some(written) })
    }
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store")).unwrap();
        let context = dir.path().join("context");
        fs::create_dir(&context).unwrap();
        let options = Options { context, tags: vec!["built".parse().unwrap()], ..Options::default() };
        Bench { dir, store, options, runs: AtomicU32::new(0) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.options.context.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn build(&self, text: &str) -> Result<Image, String> {
        self.write("Containerfile", text);
        let built = crate::build(&self.store, &self.options, self, self, &NoProgress).map_err(|error| {
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                text += &format!(": {next}");
                cause = next.source();
            }
            text
        })?;
        let image = self.store.image(&"built".parse().unwrap()).unwrap();
        assert_eq!(image.digest(), built);
        Ok(image)
    }

    fn view(&self, text: &str) -> View {
        let image = self.build(text).unwrap_or_else(|error| panic!("{error}"));
        self.store.view(&image, &NoProgress).unwrap()
    }
}

/// Every path with its kind, mode and owner, a line each.
fn listing(view: &View) -> String {
    let mut lines = String::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let info = view.stat(&path).unwrap();
        let kind = match &info.kind {
            NodeKind::Dir => "d".to_owned(),
            NodeKind::File(size) => format!("f{size}"),
            NodeKind::Symlink(target) => format!("l{}", String::from_utf8_lossy(target)),
            other => format!("{other:?}"),
        };
        if !path.is_empty() {
            let name = String::from_utf8_lossy(&path);
            lines += &format!("{name} {kind} {:o} {}:{}\n", info.mode, info.uid, info.gid);
        }
        todo.extend(
            view.list(&path)
                .unwrap_or_default()
                .into_iter()
                .rev()
                .map(|name| if path.is_empty() { name } else { [&path[..], b"/", &name].concat() }),
        );
    }
    lines
}

fn read(view: &View, path: &str) -> String {
    String::from_utf8(view.read(path.as_bytes(), 1 << 20).unwrap().unwrap_or_else(|| panic!("{path}")))
        .unwrap()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn files_come_from_the_context() {
    let bench = Bench::new();
    for (name, text) in
        [("a", "1"), ("b.txt", "22"), ("c.txt", "333"), ("d/x", "4"), ("d/sub/y", "5"), ("d/skip", "")]
    {
        bench.write(name, text);
    }
    fs::set_permissions(bench.path("a"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(bench.path("d/sub"), fs::Permissions::from_mode(0o700)).unwrap();
    symlink("x", bench.path("d/link")).unwrap();
    symlink("a", bench.path("to-a")).unwrap();
    bench.write(".dockerignore", "**/skip\n");
    let view = bench.view(
        "FROM scratch\nWORKDIR /w\nCOPY a .\nCOPY a to-a *.txt many/\nCOPY d /d2\nCOPY --chown=7:8 --chmod=0600 a /own/a\nCOPY [\"a\", \"with space\"]\n",
    );
    let want = "d2 d 755 0:0\nd2/link lx 777 0:0\nd2/sub d 700 0:0\nd2/sub/y f1 644 0:0\nd2/x f1 644 0:0\n\
        own d 755 7:8\nown/a f1 600 7:8\nw d 755 0:0\nw/a f1 4711 0:0\nw/many d 755 0:0\nw/many/a f1 4711 0:0\n\
        w/many/b.txt f2 644 0:0\nw/many/c.txt f3 644 0:0\nw/many/to-a f1 4711 0:0\nw/with space f1 4711 0:0\n";
    assert_eq!(listing(&view), want);
}

#[test]
fn stages_give_files_to_each_other_and_only_those_needed_are_made() {
    let bench = Bench::new();
    bench.write("a", "1");
    let text = "ARG BASE=scratch\nFROM $BASE AS one\nCOPY --chown=5:6 a /x/a\nENV E=one\nFROM scratch AS broken\nCOPY missing /\n\
        FROM scratch\nCOPY --from=one /x /y/\nCOPY --from=0 /x/a /z\nFROM one AS last\nCOPY --from=2 /y/a /$E\n";
    let view = bench.view(text);
    assert_eq!(listing(&view), "one f1 644 5:6\nx d 755 5:6\nx/a f1 644 5:6\n");
    let mut bench = bench;
    bench.options.target = Some("ONE".to_owned());
    assert_eq!(listing(&bench.view(text)), "x d 755 5:6\nx/a f1 644 5:6\n");
    bench.options.target = Some("broken".to_owned());
    let message = bench.build(text).unwrap_err();
    assert_eq!(message, "Containerfile:6: \"missing\" is not in the context, or left out by .dockerignore");
}

#[test]
fn the_config_says_what_the_file_says() {
    let mut bench = Bench::new();
    bench.options.args = BTreeMap::from([("V".to_owned(), "given".to_owned())]);
    let text = "FROM scratch\nARG V=default\nARG W=w\nENV A=$V B=\"x y\" C=${W:+set}\nENV D  a  b\nENV A=2 E=$A\nLABEL l=\"$A\" m=n\n\
        EXPOSE 80 53/udp 9000-9001\nVOLUME [\"/v\"]\nVOLUME /w /x\nUSER u:g\nSHELL [\"/sh\", \"-e\"]\nCMD run $A\nENTRYPOINT [\"/e\"]\n\
        STOPSIGNAL SIGINT\nHEALTHCHECK --retries=2 CMD test\nONBUILD COPY a /\nMAINTAINER me\n";
    let image = bench.build(text).unwrap();
    let config: serde_json::Value = serde_json::from_slice(image.config_bytes()).unwrap();
    let inner = &config["config"];
    let want = serde_json::json!({
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "A=2", "B=x y", "C=set", "D=a  b", "E=given",
        ],
        "Labels": {"l": "2", "m": "n"},
        "ExposedPorts": {"80/tcp": {}, "53/udp": {}, "9000/tcp": {}, "9001/tcp": {}},
        "Volumes": {"/v": {}, "/w": {}, "/x": {}},
        "User": "u:g",
        "Shell": ["/sh", "-e"],
        "Cmd": ["/sh", "-e", "run $A"],
        "Entrypoint": ["/e"],
        "StopSignal": "SIGINT",
        "Healthcheck": {"Test": ["CMD-SHELL", "test"], "Retries": 2},
        "OnBuild": ["COPY a /"],
    });
    assert_eq!(*inner, want);
    assert_eq!(config["author"], "me");
    assert_eq!(image.history().len(), 17);
    // Who builds on it does what it wants of them, and loses a command that was its entrypoint's.
    bench.store.tag(&"built".parse().unwrap(), &"base".parse().unwrap()).unwrap();
    bench.write("a", "1");
    let image = bench.build("FROM base\nENTRYPOINT [\"/f\"]\n").unwrap();
    let config: serde_json::Value = serde_json::from_slice(image.config_bytes()).unwrap();
    assert!(config["config"].get("OnBuild").is_none() && config["config"].get("Cmd").is_none());
    assert_eq!(listing(&bench.store.view(&image, &NoProgress).unwrap()), "a f1 644 0:0\n");
}

#[test]
fn archives_and_here_documents_become_files() {
    let bench = Bench::new();
    bench.write("in/dir/f", "hello");
    for (flags, name) in [("-cf", "plain.tar"), ("-czf", "small.tgz")] {
        let mut tar = Command::new("tar");
        tar.args([flags, name, "--owner=3", "--group=4", "-C", "in", "dir"])
            .current_dir(&bench.options.context);
        assert!(tar.status().unwrap().success());
    }
    bench.write("not.gz", [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let text = "FROM scratch\nARG X=1\nADD plain.tar /p\nADD small.tgz /q/\nCOPY plain.tar /c\nADD not.gz /\n\
        COPY <<one <<\"two\" /here/\n$X\none\n$X\ntwo\nCOPY <<x /file\nx\n";
    let view = bench.view(text);
    let text = listing(&view);
    for want in ["p/dir/f f5 644 3:4\n", "q/dir/f f5 644 3:4\n", "not.gz f20 644 0:0\n", "file f0 644 0:0\n"]
    {
        assert!(text.contains(want), "{want} in {text}");
    }
    assert!(text.starts_with("c f"), "{text}");
    assert_eq!((read(&view, "here/one"), read(&view, "here/two")), ("1\n".to_owned(), "$X\n".to_owned()));
    let message = bench.build("FROM scratch\nADD http://127.0.0.1/x /\n").unwrap_err();
    assert!(message.starts_with("Containerfile:2: ADD http://127.0.0.1/x: nothing is fetched"), "{message}");
}

#[test]
fn links_never_lead_out_of_the_context() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("secret"), "s").unwrap();
    symlink("../secret", bench.path("up")).unwrap();
    symlink(bench.dir.path().join("secret"), bench.path("absolute")).unwrap();
    symlink("..", bench.path("folder")).unwrap();
    for source in ["up", "absolute", "folder/secret", "../secret", "folder/../secret", "*/secret"] {
        let message = bench.build(&format!("FROM scratch\nCOPY {source} /x\n")).unwrap_err();
        assert!(message.starts_with("Containerfile:2: "), "{source}: {message}");
    }
    // The context itself is what the folder leads to, for a link stops at its root.
    let view = bench.view("FROM scratch\nCOPY folder /x\n");
    assert_eq!(view.stat(b"x/up").unwrap().kind, NodeKind::Symlink(b"../secret".to_vec()));
    assert!(view.resolve(b"x/secret", Missing::Nothing).unwrap().is_none());
}

#[test]
fn what_stands_in_the_way_is_said_and_links_of_the_image_are_followed() {
    let bench = Bench::new();
    bench.write("f", "1");
    bench.write("root/bin/tool", "2");
    bench.write("links/usr/bin/sh", "3");
    symlink("usr/bin", bench.path("links/bin")).unwrap();
    let base = "FROM scratch\nCOPY links /\n";
    let view = bench.view(&format!("{base}COPY root /\nCOPY f /bin/f\nCOPY f /bin\n"));
    let want = "bin lusr/bin 777 0:0\nusr d 755 0:0\nusr/bin d 755 0:0\nusr/bin/f f1 644 0:0\nusr/bin/sh f1 644 0:0\n\
        usr/bin/tool f1 644 0:0\n";
    assert_eq!(listing(&view), want);
    for (line, want) in [
        ("COPY root /bin/sh", "/usr/bin/sh is no folder"),
        ("COPY f /bin/sh/x", "is no folder"),
        ("COPY links/usr/bin/sh /bin/sh/", "/usr/bin/sh is no folder"),
    ] {
        let message = bench.build(&format!("{base}{line}\n")).unwrap_err();
        assert!(message.starts_with("Containerfile:3: ") && message.contains(want), "{line}: {message}");
    }
}

#[test]
fn what_was_done_is_not_done_again_unless_something_changed() {
    if !is_root() {
        println!("skipped: containers of images are for root");
        return;
    }
    let Some(busybox) = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| fs::exists(path).unwrap())
    else {
        println!("skipped: no busybox (Debian package busybox-static)");
        return;
    };
    let mut bench = Bench::new();
    fs::copy(busybox, bench.path("busybox")).unwrap();
    bench.write("f", "1");
    let text = "FROM scratch\nARG V=1\nCOPY busybox /bin/sh\nCOPY f /d/f\nENV E=e\n\
        RUN /bin/sh rm /d/f\nRUN echo $V$E > /out; mkdir -p /d/new; /bin/sh ln /out /d/hard; echo $0\nRUN <<END\necho doc > /doc\nEND\n";
    let text = text.replace("RUN /bin/sh rm", "RUN [\"/bin/sh\", \"-c\", \"rm -r /d/f\"]\n#");
    let text = text.replace("/bin/sh ln", "ln");
    let first = bench.build(&text).unwrap();
    let view = bench.store.view(&first, &NoProgress).unwrap();
    assert_eq!((read(&view, "out"), read(&view, "doc")), ("1e\n".to_owned(), "doc\n".to_owned()));
    assert_eq!(view.shared_inode(b"out"), view.shared_inode(b"d/hard"));
    assert!(view.stat(b"d/f").is_none() && view.stat(b"d/new").unwrap().kind == NodeKind::Dir);
    let runs = |bench: &Bench| bench.runs.swap(0, Ordering::Relaxed);
    assert_eq!(runs(&bench), 3);
    // A fresh checkout has other times, and nothing else.
    fs::File::open(bench.path("f")).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    assert_eq!((bench.build(&text).unwrap().digest(), runs(&bench)), (first.digest(), 0));
    // What was collected and forgotten is made again, the rest is not.
    drop((first, view));
    bench.store.collect().unwrap();
    bench.build(&text.replace("doc >", "other >")).unwrap();
    assert_eq!(runs(&bench), 1);
    bench.options.args = BTreeMap::from([("V".to_owned(), "2".to_owned())]);
    bench.build(&text).unwrap();
    assert_eq!(runs(&bench), 3);
    bench.write("f", "2");
    bench.build(&text).unwrap();
    assert_eq!(runs(&bench), 3);
    bench.options.no_cache = true;
    bench.build(&text).unwrap();
    assert_eq!(runs(&bench), 3);
    let message = bench.build(&format!("{text}RUN exit 3\n")).unwrap_err();
    assert_eq!(message, "Containerfile:12: RUN exit 3: the command ended with exit code 3");
    assert_eq!(fs::read_dir(bench.store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn files_that_make_no_sense_name_their_line() {
    let bench = Bench::new();
    for (text, want) in [
        ("", "Containerfile:1: there is no FROM"),
        ("RUN x\n", "Containerfile:1: RUN before FROM"),
        ("FROM scratch\n\nFLY away\n", "Containerfile:3: unknown instruction \"FLY\""),
        ("FROM none:1\n", "Containerfile:1: FROM none:1: get image none:1: no image named"),
        ("FROM --platform=plan9/386 scratch\n", "Containerfile:1: --platform=plan9/386: only linux/"),
        ("FROM scratch\nENV x\n", "Containerfile:2: x has no value"),
        ("FROM scratch\nEXPOSE x\n", "Containerfile:2: \"x\" is no port"),
        (
            "FROM scratch\nCOPY --chown=nobody Containerfile /\n",
            "Containerfile:2: --chown=nobody: \"nobody\" is neither",
        ),
        ("FROM scratch\nCOPY --chmod=u+x Containerfile /\n", "Containerfile:2: --chmod=u+x: it is not octal"),
        ("FROM scratch\nENV a=${b:?must be}\n", "Containerfile:2: variable b: must be"),
    ] {
        let message = bench.build(text).unwrap_err();
        assert!(message.starts_with(want), "{message:?} should begin with {want:?}");
    }
    assert!(bench.store.images().unwrap().is_empty());
}
