//! Runs cases on both sides, on as many threads as there are processors.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arch::x86::cpuid::{CpuModel, CpuidResult, FeatureSet};
use engine::{Engine, VcpuSignal};

use crate::case::{Bits, Output, TIMEOUT};
use crate::compare::{self, Verdict};
use crate::forms::Rules;
use crate::generate::{self, Case, Generator};
use crate::guest::Guest;
use crate::native::{self, BATCH, Native};
use crate::report::{self, Failure, Seen};

/// How long the interpreter may take for a case the processor finished in milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// This many kicks without an end, and a case is endless.
const KICKS: u32 = 3;

/// What to run, and on which engine.
pub struct Settings {
    pub engine: &'static dyn Engine,
    /// Whether the engine should find the data pages in its TLB.
    pub warm: bool,
    pub sequences: u64,
    pub seed: u64,
    pub only: Option<u64>,
}

impl Settings {
    pub fn from_environment(engine: &'static dyn Engine, warm: bool) -> Self {
        let number = |name: &str| {
            let text = std::env::var(name).ok()?;
            let text = text.trim();
            let value = text
                .strip_prefix("0x")
                .map_or_else(|| text.parse().ok(), |hex| u64::from_str_radix(hex, 16).ok());
            Some(value.unwrap_or_else(|| panic!("{name} is not a number: {text}")))
        };
        Self {
            engine,
            warm,
            sequences: number("STRATA_SEQUENCES").unwrap_or(200_000),
            seed: number("STRATA_SEED").unwrap_or(1),
            only: number("STRATA_CASE"),
        }
    }
}

/// What came of a run.
#[derive(Default)]
pub struct Summary {
    pub seed: u64,
    pub model: &'static str,
    pub sequences: u64,
    pub instructions: u64,
    pub endless: u64,
    /// Cases by width.
    pub by_bits: [u64; 3],
    pub forms: usize,
    pub forms_covered: usize,
    /// Forms seen to complete without a fault.
    pub forms_completed: usize,
    pub uncovered: Vec<String>,
    pub never_completed: Vec<String>,
    /// How often each vector ended a case.
    pub vectors: HashMap<u32, u64>,
    pub failures: Vec<Failure>,
    pub differing: u64,
    /// Accepted differences by reason.
    pub known: HashMap<&'static str, u64>,
}

/// The best model this host can check.
fn model() -> CpuModel {
    let host = FeatureSet::from_cpuid(|leaf, subleaf| {
        let raw = std::arch::x86_64::__cpuid_count(leaf, subleaf);
        CpuidResult { eax: raw.eax, ebx: raw.ebx, ecx: raw.ecx, edx: raw.edx }
    });
    let avx = std::arch::is_x86_feature_detected!("avx2");
    let best = CpuModel::named("x86-64-v3").expect("a named model");
    if avx && best.missing_on(host).is_empty() {
        return CpuModel::named("host-like").expect("a named model").fitted_to(host);
    }
    CpuModel::named("x86-64-v2").expect("a named model")
}

/// How often forms were executed and completed, by position in the generator's table.
struct Coverage {
    executed: Vec<AtomicU64>,
    completed: Vec<AtomicU64>,
    positions: HashMap<(iced_x86::Code, u32), usize>,
}

impl Coverage {
    fn new(generator: &Generator) -> Self {
        let all = || generator.forms.iter().flatten();
        let zeros = || all().map(|_| AtomicU64::new(0)).collect();
        let positions = all().enumerate().map(|(i, form)| ((form.code, form.bits), i)).collect();
        Self { executed: zeros(), completed: zeros(), positions }
    }

    fn note(&self, case: &Case, native: &Output) -> usize {
        // Where the end is at no instruction's start, a branch left: only the first is known to have run.
        let done = compare::completed(case, native);
        let linear = !case.instructions.iter().any(|p| p.insn.flow_control() != iced_x86::FlowControl::Next);
        let (done, ran) = match done {
            Some(n) if linear => (n, (n + 1).min(case.instructions.len())),
            _ => {
                let stayed = native.registers.rip == case.input.registers.rip;
                (usize::from(!stayed), 1)
            }
        };
        for (i, placed) in case.instructions[..ran].iter().enumerate() {
            if let Some(at) = self.positions.get(&(placed.insn.code(), case.input.bits.count())) {
                self.executed[*at].fetch_add(1, Ordering::Relaxed);
                if i < done {
                    self.completed[*at].fetch_add(1, Ordering::Relaxed);
                }
            }
        }
        ran
    }
}

struct Plan<'a> {
    generator: &'a Generator<'a>,
    rules: &'a Rules,
    pool: &'static [u8],
    settings: &'a Settings,
    next: AtomicU64,
    stop: AtomicBool,
    coverage: Coverage,
}

/// Runs what `settings` ask for.
pub fn run(settings: &Settings) -> Summary {
    let rules = Rules::new(model());
    let generator = Generator::new(&rules, settings.seed);
    let plan = Plan {
        generator: &generator,
        rules: &rules,
        pool: Box::leak(generate::pool(settings.seed).into_boxed_slice()),
        settings,
        next: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        coverage: Coverage::new(&generator),
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let threads = if settings.only.is_some() { 1 } else { threads };
    let parts: Vec<Summary> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| work(&plan))).collect();
        workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).collect()
    });
    let mut summary = Summary { seed: settings.seed, model: rules.model().name, ..Summary::default() };
    for part in parts {
        summary.add(part);
    }
    summary.count_forms(&plan);
    summary
}

impl Summary {
    fn add(&mut self, part: Self) {
        self.sequences += part.sequences;
        self.instructions += part.instructions;
        self.endless += part.endless;
        self.differing += part.differing;
        for (sum, n) in self.by_bits.iter_mut().zip(part.by_bits) {
            *sum += n;
        }
        for (vector, n) in part.vectors {
            *self.vectors.entry(vector).or_default() += n;
        }
        for (reason, n) in part.known {
            *self.known.entry(reason).or_default() += n;
        }
        for failure in part.failures {
            self.record(failure);
        }
    }

    fn record(&mut self, failure: Failure) {
        match self.failures.iter_mut().find(|known| known.key == failure.key) {
            Some(known) => known.count += failure.count,
            None => self.failures.push(failure),
        }
    }

    fn count_forms(&mut self, plan: &Plan) {
        let coverage = &plan.coverage;
        self.forms = coverage.executed.len();
        for (i, form) in plan.generator.forms.iter().flatten().enumerate() {
            let name = || format!("{}-bit {:?}", form.bits, form.code);
            if coverage.executed[i].load(Ordering::Relaxed) > 0 {
                self.forms_covered += 1;
            } else {
                self.uncovered.push(name());
            }
            if coverage.completed[i].load(Ordering::Relaxed) > 0 {
                self.forms_completed += 1;
            } else {
                self.never_completed.push(name());
            }
        }
    }
}

/// Both sides of one thread.
pub struct Sides {
    pub native: Native,
    pub guest: Guest,
}

impl Sides {
    /// Runs one case on both.
    pub fn verdict(&mut self, case: &Case) -> (Verdict, Output, Output) {
        let native = match self.native.run(std::slice::from_ref(&case.input)) {
            Ok(outputs) => outputs[0].clone(),
            Err(error) => panic!("{error}\n{}", report::describe(case)),
        };
        let mut guest = native::blank();
        self.run_guest(case, &native, &mut guest);
        (compare::compare(case, &native, &guest), native, guest)
    }
}

impl Sides {
    /// Runs a case that ends on the processor in the engine. A first kick may have been meant for a case before it, while the
    /// processor took its time for a batch.
    fn run_guest(&mut self, case: &Case, native: &Output, output: &mut Output) {
        if native.fault.vector == TIMEOUT {
            return;
        }
        for _ in 0..KICKS {
            self.guest.run(&case.input, output);
            if output.fault.vector != TIMEOUT {
                return;
            }
        }
    }
}

/// Kicks the interpreter out of a case it does not finish.
fn watch(done: &AtomicBool, begun: &AtomicU64, signal: &Arc<VcpuSignal>) {
    let mut seen = u64::MAX;
    while !done.load(Ordering::Relaxed) {
        std::thread::park_timeout(PATIENCE);
        let now = begun.load(Ordering::Relaxed);
        if now == seen {
            signal.kick();
        }
        seen = now;
    }
}

fn work(plan: &Plan) -> Summary {
    let native = Native::start(plan.pool).expect("start the native worker");
    let Settings { engine, warm, .. } = *plan.settings;
    let mut sides = Sides { native, guest: Guest::new(engine, warm, plan.rules.model(), plan.pool) };
    let signal = sides.guest.signal();
    let (done, begun) = (AtomicBool::new(false), sides.guest.begun());
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| watch(&done, &begun, &signal));
        let finish = Finish { done: &done, watcher: watcher.thread().clone() };
        let mut summary = Summary::default();
        while let Some(cases) = batch(plan) {
            run_batch(plan, &mut sides, &cases, &mut summary);
        }
        drop(finish);
        summary
    })
}

/// Ends the watcher, also when a case panics.
struct Finish<'a> {
    done: &'a AtomicBool,
    watcher: std::thread::Thread,
}

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        self.watcher.unpark();
    }
}

fn batch(plan: &Plan) -> Option<Vec<Case>> {
    let (first, end) = match plan.settings.only {
        Some(only) => (only, only + 1),
        None => (0, plan.settings.sequences),
    };
    let start = first + plan.next.fetch_add(BATCH as u64, Ordering::Relaxed);
    if start >= end || plan.stop.load(Ordering::Relaxed) {
        return None;
    }
    Some((start..end.min(start + BATCH as u64)).map(|index| plan.generator.case(index)).collect())
}

fn run_batch(plan: &Plan, sides: &mut Sides, cases: &[Case], summary: &mut Summary) {
    let inputs: Vec<_> = cases.iter().map(|case| case.input.clone()).collect();
    let natives = match sides.native.run(&inputs) {
        Ok(outputs) => outputs.to_vec(),
        Err(error) => panic!("{error}; cases {}..", cases[0].index),
    };
    let mut output = native::blank();
    for (case, native) in cases.iter().zip(&natives) {
        summary.sequences += 1;
        summary.by_bits[Bits::ALL.iter().position(|b| *b == case.input.bits).unwrap_or(0)] += 1;
        *summary.vectors.entry(native.fault.vector).or_default() += 1;
        sides.run_guest(case, native, &mut output);
        summary.instructions += plan.coverage.note(case, native) as u64;
        let intact = sides.guest.read_only_page_is_intact(&case.input);
        match compare::compare(case, native, &output) {
            Verdict::Endless => summary.endless += 1,
            Verdict::Known(reason) if intact => *summary.known.entry(reason).or_default() += 1,
            Verdict::Agree if intact => {}
            verdict => {
                summary.differing += 1;
                let lines = if let Verdict::Differ(lines) = verdict { lines } else { Vec::new() };
                if summary.differing <= 2000 {
                    let seen = Seen { lines: &lines, native, guest: &output };
                    summary.record(report::examine(plan.generator, sides, case, &seen));
                }
            }
        }
    }
}
