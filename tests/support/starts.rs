//! The four ways in which a guest comes to run a command: it booted, it goes on from a template, the command was saved and
//! restored, or it is a copy of one that goes on elsewhere.

use std::process::{Command, Stdio};

use super::{strata, with_assets};

/// How a guest came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Booted,
    Template,
    Snapshot,
    Copy,
}

impl Start {
    pub const ALL: [Self; 4] = [Self::Booted, Self::Template, Self::Snapshot, Self::Copy];

    /// As `STRATA_TEST_START` says, for `make matrix`; one that is not set leaves the choice to the program.
    pub fn of_environment() -> Option<Self> {
        let name = std::env::var("STRATA_TEST_START").ok()?;
        let known = Self::ALL.into_iter().find(|start| start.name() == name);
        Some(known.unwrap_or_else(|| panic!("STRATA_TEST_START={name} is none of {:?}", Self::ALL)))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Booted => "booted",
            Self::Template => "template",
            Self::Snapshot => "snapshot",
            Self::Copy => "copy",
        }
    }

    /// The flags of `strata run` for it.
    pub fn flags(self) -> [&'static str; 2] {
        ["--start", if self == Self::Booted { "cold" } else { "warm" }]
    }

    /// `strata run ARGUMENTS` this way, if it can be: the rest says for itself how it starts, or what it has open is not saved.
    pub fn run(self, arguments: &[&str]) -> Option<Command> {
        let split = arguments.iter().position(|argument| *argument == "--");
        let held = split.and_then(|split| Held::of(self, &arguments[..split], &arguments[split + 1..]));
        if let Some(held) = held {
            return held.command();
        }
        let mut command = with_assets()?;
        let own = &arguments[..split.unwrap_or(arguments.len())];
        command.arg("run").args(self.flags().iter().filter(|_| !own.contains(&"--start"))).args(arguments);
        Some(command)
    }
}

/// Waits until its host name is another, as a saved machine's is when it goes on, and becomes the command.
const GATE: &str = "was=$(cat /proc/sys/kernel/hostname); echo at the gate; \
                    while [ \"$(cat /proc/sys/kernel/hostname)\" = \"$was\" ]; do sleep 0.05; done; exec \"$@\"";

/// `$1` the program, `$2` the way; then the flags of `strata run`, `--`, those of `strata restore`, `--`, and the command.
const SCRIPT: &str = r#"
strata=$1 way=$2 held=held-$$; shift 2
run=(); while [ "$1" != -- ]; do run+=("$1"); shift; done; shift
restore=(); while [ "$1" != -- ]; do restore+=("$1"); shift; done; shift
if [ "$way" = copy ]; then
    "$strata" run -d --name "$held" "${run[@]}" -- sh -c "$GATE" gate "$@" > /dev/null || exit
    until [ "$("$strata" logs "$held")" = 'at the gate' ]; do sleep 0.05; done
    copy=$("$strata" fork "$held") || exit
    "$strata" rm -f "$held" > /dev/null
    for signal in INT TERM; do trap "'$strata' kill -s $signal '$copy' > /dev/null" $signal; done
    "$strata" logs --follow "$copy" &
    while kill -0 $! 2> /dev/null; do wait $!; done
    # It has ended, or nobody reads what it writes: in the background it does not hear of that.
    "$strata" kill -s PIPE "$copy" > /dev/null 2>&1
    code=$("$strata" wait "$copy")
    "$strata" rm "$copy" > /dev/null
    exit "$code"
fi
dir=$(mktemp -d)
( while kill -0 $$; do sleep 1; done; rm -rf "$dir" ) > /dev/null 2>&1 < /dev/null &
mkfifo "$dir/in"; exec 9<> "$dir/in"
"$strata" run --name "$held" "${run[@]}" -- sh -c "$GATE" gate "$@" < "$dir/in" > "$dir/out" 2> "$dir/err" 9>&- &
until grep -q '^at the gate$' "$dir/out"; do
    if ! kill -0 $! 2> /dev/null; then wait $!; code=$?; cat "$dir/out"; cat "$dir/err" >&2; exit $code; fi
    sleep 0.05
done
"$strata" snapshot --stop "$held" "$dir/snap" || exit
wait $!
exec 9>&-
exec "$strata" restore "${restore[@]}" "$dir/snap"
"#;

/// A command that is held at its beginning until its machine was saved and goes on.
struct Held<'a> {
    start: Start,
    run: Vec<&'a str>,
    restore: Vec<&'a str>,
    command: &'a [&'a str],
}

impl<'a> Held<'a> {
    fn of(start: Start, flags: &[&'a str], command: &'a [&'a str]) -> Option<Self> {
        if !matches!(start, Start::Snapshot | Start::Copy) {
            return None;
        }
        let mut held = Self { start, run: Vec::new(), restore: Vec::new(), command };
        let mut flags = flags.iter().copied();
        while let Some(flag) = flags.next() {
            match flag {
                "-i" if start == Start::Snapshot => {
                    held.run.push(flag);
                    held.restore.push(flag);
                }
                "--host-loopback" if start == Start::Snapshot => {
                    held.run.push(flag);
                    held.restore.push(flag);
                }
                "--name" | "--timeout" | "-p" if start == Start::Snapshot => {
                    held.restore.extend([flag, flags.next()?]);
                    if flag == "-p" {
                        held.run.extend(["--network", "user"]);
                    }
                }
                "--engine" => {
                    let engine = flags.next()?;
                    held.run.extend([flag, engine]);
                    held.restore.extend([flag, engine]);
                }
                "--cpus" | "--cpu" | "--memory" | "-e" | "--workdir" | "--user" | "--kernel" => {
                    held.run.extend([flag, flags.next()?]);
                }
                flag if flag.starts_with('-') => return None,
                image => held.run.push(image),
            }
        }
        Some(held)
    }

    fn command(self) -> Option<Command> {
        let root = with_assets()?;
        let mut command = Command::new("bash");
        command.args(["-c", SCRIPT, "held"]).arg(strata().get_program()).arg(self.start.name());
        command.args(self.run).arg("--").args(self.restore).arg("--").args(self.command);
        command.env("GATE", GATE).env_remove("NO_COLOR").stdin(Stdio::null());
        for (name, value) in root.get_envs() {
            if let Some(value) = value {
                command.env(name, value);
            }
        }
        Some(command)
    }
}
