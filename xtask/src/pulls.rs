//! `cargo xtask pulls`: an image from a registry on loopback into a store, beside skopeo, which copies the same image into
//! an OCI layout. Both compare digests; Strata makes what it wrote durable besides.
//!
//! Each round runs both, in turn, into folders that are empty. The image's layers cannot be compressed.

use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

/// How long the registry may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often the memory of what runs is looked at: the kernel keeps the peak.
const LOOK: Duration = Duration::from_millis(2);

/// What to measure.
#[derive(clap::Args)]
pub struct Options {
    /// The program to measure
    #[arg(long)]
    strata: PathBuf,
    /// Layers of the image
    #[arg(long, default_value_t = 4)]
    layers: usize,
    /// MiB of each
    #[arg(long, default_value_t = 50)]
    layer_mib: usize,
    /// Rounds
    #[arg(long, default_value_t = 11)]
    rounds: usize,
}

/// A process that is ended with its owner.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures, and prints a table.
pub fn run(options: &Options) -> Outcome {
    let folder = tempfile::tempdir()?;
    let (_registry, domain) = serve(folder.path())?;
    let name = format!("{domain}/bench/large");
    publish(options, folder.path(), &name)?;
    let store = folder.path().join("pulled");
    let layout = folder.path().join("layout");
    let mut figures = [Vec::new(), Vec::new()];
    for _ in 0..options.rounds {
        let mut pull = Command::new(&options.strata);
        pull.arg("--root").arg(&store).args(["pull", "--tls-verify=false", &name]);
        figures[0].push(measure(pull)?);
        fs::remove_dir_all(&store)?;
        let mut copy = Command::new("skopeo");
        copy.args(["--insecure-policy", "copy", "--src-tls-verify=false", "--quiet"]);
        copy.arg(format!("docker://{name}")).arg(format!("oci:{}:large", layout.display()));
        figures[1].push(measure(copy)?);
        fs::remove_dir_all(&layout)?;
    }
    println!("| what | median | least | most memory |\n|---|---|---|---|");
    let names = ["strata pull", "skopeo copy"];
    let mut medians = Vec::new();
    for (name, figures) in names.iter().zip(&mut figures) {
        figures.sort_unstable();
        let median = figures[figures.len() / 2].0;
        let most = figures.iter().map(|figure| figure.1).max().unwrap_or(0);
        let (median_ms, least_ms) = (median.as_secs_f64() * 1e3, figures[0].0.as_secs_f64() * 1e3);
        println!("| {name} | {median_ms:.0} ms | {least_ms:.0} ms | {} MiB |", most >> 10);
        medians.push(median.as_secs_f64());
    }
    println!("\nspeed of skopeo's: {:.2}", medians[1] / medians[0]);
    Ok(())
}

/// The distribution's registry, on a port nobody has.
fn serve(folder: &Path) -> Outcome<(Registry, String)> {
    let domain = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let config = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '{domain}'}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\n",
        folder.join("registry").display()
    );
    fs::write(&config, text)?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(config).stdout(Stdio::null()).stderr(Stdio::null());
    let registry = Registry(command.spawn()?);
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect(&domain).is_err() {
        if Instant::now() > deadline {
            return Err("docker-registry does not start".into());
        }
        std::thread::sleep(LOOK);
    }
    Ok((registry, domain))
}

/// Builds the image and pushes it.
fn publish(options: &Options, folder: &Path, name: &str) -> Outcome {
    let context = folder.join("context");
    fs::create_dir(&context)?;
    let mut text = String::from("FROM scratch\n");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for layer in 0..options.layers {
        let mut file = fs::File::create(context.join(layer.to_string()))?;
        for _ in 0..options.layer_mib {
            let mut bytes = Vec::with_capacity(1 << 20);
            while bytes.len() < 1 << 20 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                bytes.extend(state.to_le_bytes());
            }
            file.write_all(&bytes)?;
        }
        text.push_str(&format!("COPY {layer} /\n"));
    }
    fs::write(context.join("Containerfile"), text)?;
    let store = folder.join("built");
    let strata = |arguments: &[&str]| -> Outcome {
        let mut command = Command::new(&options.strata);
        command.arg("--root").arg(&store).args(arguments).current_dir(&context);
        measure(command).map(drop)
    };
    strata(&["image", "build", "-t", name, "."])?;
    strata(&["push", "--tls-verify=false", name])?;
    fs::remove_dir_all(&context)?;
    Ok(fs::remove_dir_all(&store)?)
}

/// Runs it to its end; how long that took, and its memory at the most, in KiB.
fn measure(mut command: Command) -> Outcome<(Duration, u64)> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        if let Some(ended) = child.try_wait()? {
            if !ended.success() {
                return Err(format!("{command:?}: {ended}").into());
            }
            return Ok((begun.elapsed(), peak));
        }
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let now = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(now.unwrap_or(0));
        std::thread::sleep(LOOK);
    }
}
