//! `strata debug …`: for developers of engines and kernels.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use arch::x86::CpuState;
use clap::{Args, Subcommand, ValueEnum};
use machine::snapshot::{Snapshot, folder};

use super::{snapshot, workloads};
use crate::cli::Global;
use crate::engines::inspect::{Detail, Inspector, Privilege, Width};
use crate::exit::Exit;
use crate::failure::{Failure, Outcome, While};
use crate::{engines, output};

/// Look into a machine: for developers of engines and kernels
#[derive(Subcommand)]
pub enum Command {
    Jit(Box<JitOptions>),
}

/// Show what the translator makes of guest code
///
/// Prints the block at an address: each guest instruction, and behind it the host code for it. What is shown is made anew
/// from the guest's memory, as --engine jit does it, whatever engine the machine runs on; it stands still for a moment.
/// Without an address it is the code that a vCPU is at.
#[derive(Args)]
pub struct JitOptions {
    /// The address is a linear one, which the page tables of a vCPU lead to memory
    #[arg(long)]
    linear: bool,
    /// The vCPU whose page tables and place count
    #[arg(long, value_name = "N", default_value_t = 0)]
    cpu: u32,
    /// Privilege that the code runs with [default: by the linear address, or by the vCPU]
    #[arg(long, value_name = "WHOSE")]
    privilege: Option<Whose>,
    /// Width of the code [default: that of the vCPU's code]
    #[arg(long, value_name = "BITS")]
    width: Option<Bits>,
    /// Blocks, one behind the other
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    blocks: u32,
    /// How much of the code
    #[arg(long, value_enum, default_value_t = Shown::Whole)]
    show: Shown,
    /// Name or id of a workload that runs in a machine, or the folder of a snapshot
    #[arg(value_name = "NAME|DIR")]
    of: String,
    /// Guest physical address of the code, e.g. 0x1000000; below 4 GiB
    #[arg(value_name = "GPA", value_parser = parse_address)]
    address: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Whose {
    /// Level 3
    User,
    /// The others
    Kernel,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bits {
    /// In flat segments
    #[value(name = "32")]
    Bits32,
    #[value(name = "64")]
    Bits64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shown {
    /// What is executed as a rule
    Common,
    /// All of it
    Whole,
    /// Also what takes its place where the check of several accesses fails
    Variants,
}

/// Does what the verb says.
///
/// # Errors
/// There is no such machine, or no code at the address.
pub fn run(global: &Global, command: &Command) -> Outcome {
    match command {
        Command::Jit(options) => jit(global, options),
    }
}

fn parse_address(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("0x").map_or_else(|| text.parse(), |hex| u64::from_str_radix(hex, 16));
    number.map_err(|_| "an address is a number, e.g. 0x1000000".to_owned())
}

/// The machine at rest that `of` names: a running one is saved to memory.
fn snapshot_of(global: &Global, of: &str) -> Outcome<Snapshot> {
    let act = || format!("look into {of:?}");
    if Path::new(of).is_dir() {
        return folder::open(&PathBuf::from(of)).while_trying(act);
    }
    let running = workloads::find(global, of)?;
    let (frozen, _) = snapshot::freeze(&running)?;
    frozen.copy().while_trying(act)
}

/// What code is looked at, and how.
struct View {
    vcpu: CpuState,
    linear: bool,
    privilege: Privilege,
    detail: Detail,
}

fn jit(global: &Global, options: &JitOptions) -> Outcome {
    let snapshot = snapshot_of(global, &options.of)?;
    let act = || format!("look into {:?}", options.of);
    let vcpu = snapshot.vcpu(options.cpu).while_trying(act)?;
    let vcpu = vcpu.ok_or_else(|| Failure::new(format!("{}: it has no vCPU {}", act(), options.cpu)))?;
    let mut inspector = engines::inspector(&snapshot)?;
    let (address, linear) = options.address.map_or((vcpu.rip, true), |address| (address, options.linear));
    let of_vcpu = if vcpu.code_bits() == 64 { Bits::Bits64 } else { Bits::Bits32 };
    let width = options.width.unwrap_or(of_vcpu);
    inspector.set_width(if width == Bits::Bits32 { Width::Bits32 } else { Width::Bits64 });
    let is_user = match options.privilege {
        Some(whose) => matches!(whose, Whose::User),
        None if options.address.is_some() && linear => address >> 63 == 0,
        None => vcpu.cpl() == 3,
    };
    let privilege = if is_user { Privilege::User } else { Privilege::Kernel };
    let detail = match options.show {
        Shown::Common => Detail::Common,
        Shown::Whole => Detail::Whole,
        Shown::Variants => Detail::Variants,
    };
    let view = View { vcpu, linear, privilege, detail };
    output::write(&view.blocks(&mut inspector, address, options.blocks)?)?;
    Ok(Exit::Success)
}

impl View {
    /// `count` blocks from `address` on, as text.
    fn blocks(&self, inspector: &mut Inspector, address: u64, count: u32) -> Outcome<String> {
        let (mut text, mut at) = (String::new(), address);
        for _ in 0..count {
            let act = || format!("show the code at {at:#x}");
            let gpa = self.gpa(inspector, at)?;
            let block = inspector.block(gpa, at, self.privilege, self.detail).while_trying(act)?;
            let end = (gpa & 0xfff) + block.len;
            if end > 0x1000 && self.gpa(inspector, at + block.len - 1)? != gpa + block.len - 1 {
                let _ = write!(text, "instruction {at:#x}: in two pages that are apart in guest memory\n\n");
            } else {
                text += &block.text;
            }
            at = at.wrapping_add(block.len);
        }
        Ok(text)
    }

    fn gpa(&self, inspector: &Inspector, at: u64) -> Outcome<u64> {
        if !self.linear {
            return Ok(at);
        }
        let gpa = inspector.translate(&self.vcpu, at, self.privilege);
        gpa.map_err(|exception| {
            Failure::new(format!("show the code at {at:#x}: its page is not mapped: {exception:?}"))
                .hint("--cpu chooses another vCPU, --privilege whose code it is")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hexadecimal_with_a_prefix() {
        assert_eq!(parse_address("0x1000"), Ok(0x1000));
        assert_eq!(parse_address("4096"), Ok(4096));
        for wrong in ["", "0x", "1000h", "-1", "0x1_0000_0000_0000_0000"] {
            assert!(parse_address(wrong).is_err(), "{wrong:?} was accepted");
        }
    }
}
