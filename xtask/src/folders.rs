//! `cargo xtask folders`: how fast a machine is with files of this host (virtio-fs) and with a disk (virtio-blk), beside QEMU TCG
//! with virtiofsd and with its own.
//!
//! Every guest does the same errand in a folder that is new: it unpacks a tree of small files, writes a file and reads it with
//! its page cache dropped. The disk is read at random past the guest's page cache, and is in the host's.

use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::bench::contenders::MEMORY_MIB;
use crate::peers::{self, Contest, Peers, Running, Table};

/// Where distributions have it.
const VIRTIOFSD: [&str; 3] =
    ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/libexec/qemu/virtiofsd"];
const DISK_BYTES: u64 = 256 << 20;

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    #[command(flatten)]
    contest: Contest,
    /// Files of the tree
    #[arg(long, default_value_t = 5000)]
    files: usize,
    /// MiB of the file that is written and read
    #[arg(long, default_value_t = 1024)]
    mib: u64,
    /// Seconds that the disk is read for
    #[arg(long, default_value_t = 4)]
    seconds: u64,
}

/// Measures and prints a table.
pub fn run(top: &Path, options: &Options) -> Outcome {
    let peers = Peers::make(top, &options.contest.program)?;
    let tree = peers.folder.path().join("tree.tar");
    pack(peers.folder.path(), &tree, options.files)?;
    let mut table = Table::new(["strata", "QEMU TCG"]);
    let rows = [
        ("tar", table.row(&format!("virtio-fs: tar x of {} files", options.files), "s", 2.0, false)),
        ("write", table.row(&format!("virtio-fs: {} MiB written", options.mib), "s", 2.0, false)),
        ("read", table.row(&format!("virtio-fs: {} MiB read", options.mib), "s", 2.0, false)),
    ];
    let random = table.row("virtio-blk: random 4 KiB read", "us", 2.0, false);
    let disk = peers.folder.path().join("disk");
    let mut file = std::fs::File::create(&disk)?;
    let block: Vec<u8> = (0..1u32 << 18).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    for _ in 0..DISK_BYTES >> 20 {
        file.write_all(&block)?;
    }
    drop(file);
    for _ in 0..options.contest.rounds {
        let ours = in_folder(&peers, options, &tree, |folder| strata(options, folder))?;
        let theirs = in_folder(&peers, options, &tree, |folder| qemu(&peers, folder))?;
        for ((_, row), figures) in rows.iter().zip(ours.into_iter().zip(theirs)) {
            table.add(*row, [figures.0, figures.1]);
        }
        table.add(random, at_random(&peers, options, &disk)?);
    }
    let Contest { rounds, engine, .. } = &options.contest;
    table.show(
        &format!("`cargo xtask folders`, {rounds} rounds, engine {engine}"),
        &peers,
        options.contest.out.as_deref(),
    )
}

/// Small files of many sizes in a hundred folders.
fn pack(folder: &Path, to: &Path, files: usize) -> Outcome {
    let tree = folder.join("tree");
    for number in 0..files {
        let name = tree.join(format!("d{}/f{number}", number % 100));
        std::fs::create_dir_all(name.parent().unwrap_or(&tree))?;
        std::fs::write(name, vec![number as u8; 100 + (number * 7919) % 8000])?;
    }
    peers::run(Command::new("tar").arg("-C").arg(folder).arg("-cf").arg(to).arg("tree"))?;
    Ok(std::fs::remove_dir_all(tree)?)
}

/// A guest, and what has to live as long.
type Guest = (Running, Option<Server>);

/// The errand's figures in a new folder, in the order of the rows.
fn in_folder(
    peers: &Peers,
    options: &Options,
    tree: &Path,
    start: impl FnOnce(&Path) -> Outcome<Guest>,
) -> Outcome<Vec<f64>> {
    let folder = tempfile::tempdir_in(peers.folder.path())?;
    std::fs::hard_link(tree, folder.path().join("tree.tar"))?;
    let bytes = options.mib << 20;
    let errand = format!(
        "/bin/transfers time tar /bin/busybox tar -xf /share/tree.tar -C /share\n\
         /bin/transfers write /share/big {bytes}\necho 3 >/proc/sys/vm/drop_caches\n\
         /bin/transfers read /share/big {bytes}\n"
    );
    std::fs::write(folder.path().join("errand"), errand)?;
    let (guest, server) = start(folder.path())?;
    let figures = ["tar", "write", "read"].map(|row| guest.figure(row));
    drop((guest, server));
    let found = std::fs::read_dir(folder.path().join("tree"))?.count();
    if found != options.files.min(100) {
        return Err(format!("{found} folders came out of the archive").into());
    }
    figures.into_iter().collect()
}

fn strata(options: &Options, folder: &Path) -> Outcome<Guest> {
    let volume = format!("{}:/share", folder.display());
    let run = [
        "run",
        "--engine",
        &options.contest.engine,
        "-v",
        &volume,
        peers::IMAGE,
        "--",
        "/bin/sh",
        "/share/errand",
    ];
    Ok((Running::start(options.contest.program.command(&run))?, None))
}

fn qemu(peers: &Peers, folder: &Path) -> Outcome<Guest> {
    let socket = folder.with_extension("sock");
    let server = Server::start(folder, &socket)?;
    let flags = [
        "-object".to_owned(),
        format!("memory-backend-memfd,id=m,size={MEMORY_MIB}M,share=on"),
        "-machine".to_owned(),
        "memory-backend=m".to_owned(),
        "-chardev".to_owned(),
        format!("socket,id=c,path={}", socket.display()),
        "-device".to_owned(),
        "vhost-user-fs-device,chardev=c,tag=share".to_owned(),
    ];
    let append = peers::append("bench.folder=share", "/bin/busybox sh /share/errand");
    Ok((Running::start(peers.qemu(&flags, &append))?, Some(server)))
}

/// virtiofsd on a folder; killed when dropped.
struct Server(Child);

impl Server {
    fn start(folder: &Path, socket: &Path) -> Outcome<Self> {
        let program = VIRTIOFSD.into_iter().find(|path| Path::new(path).exists());
        let program = program.ok_or("virtiofsd is nowhere (package qemu-system-common, or virtiofsd)")?;
        let mut command = Command::new(program);
        command.arg(format!("--socket-path={}", socket.display()));
        command.arg("-o").arg(format!("source={}", folder.display()));
        let server = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            if Instant::now() > deadline {
                return Err("virtiofsd does not start".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Microseconds for a piece, in both guests.
fn at_random(peers: &Peers, options: &Options, disk: &Path) -> Outcome<[f64; 2]> {
    let append = peers::append("", &format!("/bin/transfers random /dev/vda {}", options.seconds));
    let flags = ["--disk".to_owned(), format!("{},ro", disk.display())];
    let ours =
        Running::start(peers.strata_boot(&options.contest.engine, &flags, &append))?.figure("random")?;
    let drive = format!("file={},format=raw,if=none,id=d,read-only=on", disk.display());
    let flags = ["-drive", &drive, "-device", "virtio-blk-device,drive=d"].map(str::to_owned);
    let theirs = Running::start(peers.qemu(&flags, &append))?.figure("random")?;
    Ok([ours, theirs])
}
