//! What networks, folders and disks are measured with: the same programs on Strata and on QEMU TCG, and how often.
//!
//! `bench/transfers.c` does the work, the same static file on both. A guest of QEMU has the kernel of the store and an initial
//! RAM disk with the modules of its devices; a guest of Strata runs an image with the same two programs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use image::Store;
use image::cpio::{Cpio, Device};

use crate::bench::contenders;
use crate::program::Program;
use crate::{Outcome, lines};

/// The image that the measured workloads run.
pub const IMAGE: &str = "bench-transfers";
/// What a guest of QEMU needs of its kernel's modules.
const MODULES: [&str; 5] = ["virtio_mmio", "virtio_net", "virtio_blk", "virtiofs", "virtio_rng"];
/// The longest that one errand may take.
const PATIENCE: Duration = Duration::from_secs(240);

/// What contests of a machine and its peer have in common.
#[derive(clap::Args)]
pub struct Contest {
    #[command(flatten)]
    pub program: Program,
    /// Engine of the program
    #[arg(long, default_value = "jit")]
    pub engine: String,
    /// Rounds, each of all contestants
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Folder that the figures are added to
    #[arg(long)]
    pub out: Option<PathBuf>,
}

/// Programs, kernel and initial RAM disk, in a folder that is gone with this.
pub struct Peers {
    /// Scratch.
    pub folder: tempfile::TempDir,
    /// Strata and its store, which has [`IMAGE`].
    pub program: Program,
    /// The kernel of its guests, by its id.
    pub kernel_id: String,
    kernel: PathBuf,
    initrd: PathBuf,
    _image: Imported,
}

/// [`IMAGE`] in a store, which is as before when this is dropped.
struct Imported(Program);

impl Drop for Imported {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.0.command(&["image", "rm", IMAGE])) {
            println!("{IMAGE} is still in the store: {error}");
        }
    }
}

impl Peers {
    /// Builds all of it.
    pub fn make(top: &Path, program: &Program) -> Outcome<Self> {
        let folder = tempfile::tempdir()?;
        let transfers = folder.path().join("transfers");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O2", "-static", "-o"]).arg(&transfers).arg(top.join("bench/transfers.c"));
        run(&mut gcc)?;
        let bundle = Store::open(&program.store)?.kernel(None)?;
        let kernel = bundle.vmlinux_path().ok_or("the kernel of the store has no ELF form")?;
        let initrd = folder.path().join("init.cpio");
        let mut archive = Cpio::new(std::io::BufWriter::new(File::create(&initrd)?));
        for dir in ["bin", "dev", "proc", "sys", "tmp", "modules"] {
            archive.dir(dir, 0o755)?;
        }
        archive.device("dev/console", 0o600, Device::Char(5, 1))?;
        archive.file("init", 0o755, &fs::read(top.join("bench/peer.sh"))?)?;
        archive.file("bin/busybox", 0o755, &fs::read("/bin/busybox")?)?;
        archive.file("bin/transfers", 0o755, &fs::read(&transfers)?)?;
        let mut order = String::new();
        for module in bundle.modules_for(&MODULES) {
            archive.file(&format!("modules/{}.ko", module.name), 0o644, &bundle.read_module(module)?)?;
            order.push_str(&format!("{}.ko\n", module.name));
        }
        archive.file("modules/order", 0o644, order.as_bytes())?;
        archive.finish()?;
        let image = import(folder.path(), &transfers, program)?;
        let kernel_id = bundle.info().id.clone();
        Ok(Self { folder, program: program.clone(), kernel_id, kernel, initrd, _image: image })
    }

    /// QEMU with these flags more and this command line; what follows `--` there is the guest's command.
    pub fn qemu(&self, flags: &[String], append: &str) -> Command {
        let mut command = contenders::qemu_machine(1);
        // What virtiofsd insists on.
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd).args(flags);
        command.arg("-append").arg(contenders::qemu_append(append));
        command
    }

    /// `strata boot` of the same kernel and initial RAM disk.
    pub fn strata_boot(&self, engine: &str, flags: &[String], append: &str) -> Command {
        let memory = format!("{}M", contenders::MEMORY_MIB);
        let mut command = Command::new(&self.program.strata);
        command.args(["boot", "--engine", engine, "--memory", &memory]).arg("--kernel").arg(&self.kernel);
        command.arg("--initrd").arg(&self.initrd).args(flags).arg("--append").arg(append);
        command
    }
}

/// The command line of a guest that runs `command`.
pub fn append(settings: &str, command: &str) -> String {
    format!("console=ttyS0 panic=-1 reboot=k quiet {settings} -- {command}")
}

/// An image of busybox and the program.
fn import(folder: &Path, transfers: &Path, program: &Program) -> Outcome<Imported> {
    let bin = folder.join("root/bin");
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(folder.join("root/tmp"))?;
    fs::copy("/bin/busybox", bin.join("busybox"))?;
    fs::copy(transfers, bin.join("transfers"))?;
    for name in ["sh", "tar", "rm", "true", "sleep"] {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    let tar = folder.join("root.tar");
    run(Command::new("tar").arg("-C").arg(folder.join("root")).arg("-cf").arg(&tar).arg("."))?;
    run(program.command(&["image", "import"]).arg(&tar).arg(IMAGE))?;
    Ok(Imported(program.clone()))
}

/// Runs a command that has to succeed.
pub fn run(command: &mut Command) -> Outcome {
    said(command).map(drop)
}

/// What a command that has to succeed says.
pub fn said(command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("run {name}: {error}"))?;
    if !output.status.success() {
        let arguments: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} {}: {}", arguments.join(" "), text.trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A guest or another program that speaks in lines; killed when dropped.
pub struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Outcome<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|error| format!("run {name}: {error}"))?;
        let lines = lines::of(&mut child)?;
        Ok(Self { child, lines })
    }

    /// Waits for a line that `wanted` takes, and gives what it makes of it.
    pub fn wait<T>(&self, wanted: impl Fn(&str) -> Option<T>) -> Outcome<T> {
        let mut last = String::new();
        loop {
            let line = self
                .lines
                .recv_timeout(PATIENCE)
                .map_err(|_| format!("it ended or is silent after {last:?}"))?;
            if let Some(value) = wanted(line.trim()) {
                return Ok(value);
            }
            last = line;
        }
    }

    /// The figure of the row `name`, when it comes.
    pub fn figure(&self, name: &str) -> Outcome<f64> {
        let mark = format!("BENCH {name} ");
        self.wait(|line| line.strip_prefix(&mark)?.split(' ').next()?.parse().ok())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Figures of rows, by contender, round by round.
pub struct Table {
    contenders: [&'static str; 2],
    rows: Vec<Row>,
}

struct Row {
    name: String,
    unit: &'static str,
    goal: f64,
    /// Whether a larger figure is a better one.
    more_is_better: bool,
    rounds: Vec<[f64; 2]>,
}

impl Table {
    /// An empty one: the first contender is Strata.
    pub fn new(contenders: [&'static str; 2]) -> Self {
        Self { contenders, rows: Vec::new() }
    }

    /// A row: its goal is how many times better than the other the first one is to be.
    pub fn row(&mut self, name: &str, unit: &'static str, goal: f64, more_is_better: bool) -> usize {
        self.rows.push(Row { name: name.to_owned(), unit, goal, more_is_better, rounds: Vec::new() });
        self.rows.len() - 1
    }

    /// One round of a row.
    pub fn add(&mut self, row: usize, figures: [f64; 2]) {
        let Row { name, unit, rounds, .. } = &mut self.rows[row];
        eprintln!("{name}: {:.2} and {:.2} {unit}", figures[0], figures[1]);
        rounds.push(figures);
    }

    /// The table, in Markdown.
    pub fn text(&self) -> String {
        let [ours, theirs] = self.contenders;
        let mut text =
            format!("| what | {ours} | {theirs} | times as good, median | goal |\n|---|---|---|---|---|\n");
        for row in self.rows.iter().filter(|row| !row.rounds.is_empty()) {
            let median = |of: &dyn Fn(&[f64; 2]) -> f64| median(row.rounds.iter().map(of).collect());
            let ratio = median(&|[a, b]| if row.more_is_better { a / b } else { b / a });
            let bold = if ratio >= row.goal { "**" } else { "" };
            let (ours, theirs) = (median(&|[a, _]| *a), median(&|[_, b]| *b));
            let (name, unit, goal) = (&row.name, row.unit, row.goal);
            text.push_str(&format!(
                "| {name} | {ours:.2} {unit} | {theirs:.2} {unit} | {bold}{ratio:.2}{bold} | {goal} |\n"
            ));
        }
        text
    }

    /// Prints the table, and keeps it with every figure in `out` if that is given.
    pub fn show(&self, title: &str, peers: &Peers, out: Option<&Path>) -> Outcome {
        let text = self.text();
        tell(&format!("{title}\n\n{text}"), out)?;
        let Some(out) = out else { return Ok(()) };
        let mut rounds = File::options().create(true).append(true).open(out.join("rounds.tsv"))?;
        for row in &self.rows {
            for (round, figures) in row.rounds.iter().enumerate() {
                for (who, figure) in self.contenders.iter().zip(figures) {
                    writeln!(rounds, "{round}\t{who}\t{}\t{figure}\t{}", row.name, row.unit)?;
                }
            }
        }
        fs::write(out.join("machine.txt"), crate::bench::machine(&peers.kernel_id))?;
        Ok(())
    }
}

/// Prints `text`, and adds it to the table in `out` if that is given.
pub fn tell(text: &str, out: Option<&Path>) -> Outcome {
    println!("{text}");
    let Some(out) = out else { return Ok(()) };
    fs::create_dir_all(out)?;
    let mut table = File::options().create(true).append(true).open(out.join("table.md"))?;
    Ok(writeln!(table, "{text}")?)
}

/// The one in the middle of these, of which there are some.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round_and_goals_met_are_bold() {
        let mut table = Table::new(["a", "b"]);
        let (fast, slow) = (table.row("speed", "MiB/s", 2.0, true), table.row("time", "s", 2.0, false));
        table.row("never measured", "s", 1.0, false);
        for figures in [[30.0, 10.0], [10.0, 5.0], [90.0, 10.0]] {
            table.add(fast, figures);
            table.add(slow, [figures[0], figures[1]]);
        }
        let text = table.text();
        assert!(text.contains("| speed | 30.00 MiB/s | 10.00 MiB/s | **3.00** | 2 |"), "{text}");
        assert!(text.contains("| time | 30.00 s | 10.00 s | 0.33 | 2 |"), "{text}");
        assert!(!text.contains("never"), "{text}");
    }
}
