//! What one run of one contender says.

/// Who is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contender {
    /// The host itself.
    Native,
    /// QEMU's TCG.
    Qemu,
    /// Strata with this engine.
    Strata(String),
}

impl Contender {
    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::Native => "native".to_owned(),
            Self::Qemu => "QEMU".to_owned(),
            Self::Strata(engine) => format!("Strata {engine}"),
        }
    }
}

/// One figure, or why there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// Seconds, or whatever the row is measured in.
    Is(f64),
    /// It took longer than a row may.
    Timeout,
    /// The machine ended or never came up.
    Failed,
    /// The work had another result than everywhere else, so that its time means nothing.
    Wrong,
}

/// One row of one run.
#[derive(Clone, Debug)]
pub struct Row {
    pub name: String,
    pub value: Value,
    /// What the work came to; every contender must come to the same.
    pub checksum: Option<String>,
}

impl Row {
    /// A row that is no work with a result.
    pub fn new(name: &str, value: Value) -> Self {
        Self { name: name.to_owned(), value, checksum: None }
    }

    /// `BENCH name seconds checksum`
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim().strip_prefix("BENCH ")?.split_whitespace();
        let (name, seconds, checksum) = (words.next()?, words.next()?, words.next()?);
        let value = Value::Is(seconds.parse().ok()?);
        Some(Self { name: name.to_owned(), value, checksum: Some(checksum.to_owned()) })
    }
}

/// One contender's part of a round.
pub struct Run {
    pub contender: Contender,
    pub rows: Vec<Row>,
}

impl Run {
    /// What it says of the row `name`.
    pub fn value(&self, name: &str) -> Option<Value> {
        self.rows.iter().find(|row| row.name == name).map(|row| row.value)
    }

    /// The figure of the row `name`, if there is one.
    pub fn figure(&self, name: &str) -> Option<f64> {
        match self.value(name)? {
            Value::Is(figure) => Some(figure),
            _ => None,
        }
    }
}

/// Turns rows that came to another result than the first run's into [`Value::Wrong`]. Says which.
pub fn check_sums(rounds: &mut [Vec<Run>]) -> Vec<String> {
    let mut expected: Vec<(String, String)> = Vec::new();
    let mut wrong = Vec::new();
    for run in rounds.iter_mut().flatten() {
        for row in &mut run.rows {
            let Some(sum) = &row.checksum else { continue };
            match expected.iter().find(|(name, _)| *name == row.name) {
                None => expected.push((row.name.clone(), sum.clone())),
                Some((_, first)) if first == sum => {}
                Some((_, first)) => {
                    wrong.push(format!(
                        "{}: {} came to {sum}, not to {first}",
                        run.contender.name(),
                        row.name
                    ));
                    row.value = Value::Wrong;
                }
            }
        }
    }
    wrong
}

/// The median over the rounds of what `of` finds in each.
pub fn median(rounds: &[Vec<Run>], of: impl Fn(&[Run]) -> Option<f64>) -> Option<f64> {
    let mut values: Vec<f64> = rounds.iter().filter_map(|runs| of(runs)).filter(|v| v.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// The geometric mean; `None` of nothing.
pub fn geomean(values: &[f64]) -> Option<f64> {
    let logs: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (logs / values.len() as f64).exp())
}

/// The run of `contender` in a round.
pub fn find<'a>(runs: &'a [Run], contender: &Contender) -> Option<&'a Run> {
    runs.iter().find(|run| run.contender == *contender)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(contender: Contender, lines: &[&str]) -> Run {
        Run { contender, rows: lines.iter().filter_map(|line| Row::parse(line)).collect() }
    }

    #[test]
    fn another_result_is_no_figure() {
        let native = run(Contender::Native, &["BENCH a 1.5 x", "BENCH b 2 y", "noise"]);
        let qemu = run(Contender::Qemu, &["BENCH a 3 x", "BENCH b 4 z"]);
        let mut rounds = vec![vec![native, qemu]];
        assert_eq!(check_sums(&mut rounds), ["QEMU: b came to z, not to y"]);
        let qemu = find(&rounds[0], &Contender::Qemu).unwrap();
        assert_eq!((qemu.figure("a"), qemu.value("b")), (Some(3.0), Some(Value::Wrong)));
    }

    #[test]
    fn medians_and_means() {
        let round = |text: &str| vec![run(Contender::Native, &[text])];
        let rounds = [round("BENCH a 1 x"), round("BENCH a 9 x"), round("BENCH a 2 x"), round("BENCH b 1 x")];
        let of = |runs: &[Run]| runs[0].figure("a");
        assert_eq!(median(&rounds, of), Some(2.0));
        assert_eq!(median(&rounds[..2], of), Some(5.0));
        assert_eq!(median(&[], of), None);
        assert!((geomean(&[0.5, 2.0]).unwrap() - 1.0).abs() < 1e-9);
    }
}
