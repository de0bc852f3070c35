//! Rows of figures.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::load::Slice;

/// The result of a topic.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// The measured server.
    pub(crate) server: String,
    /// Figures of the single arms, to explain the rows.
    pub(crate) arms: Vec<ArmFigures>,
    pub(crate) rows: Vec<Row>,
}

/// Ours beside a peer: the medians of the rounds, and the median of the rounds' ratios.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    name: String,
    /// The figure that is compared with the target: a ratio, or the result of [`Row::gain`] or [`Row::difference`].
    ratio: f64,
    ours: f64,
    peer: f64,
    unit: &'static str,
    rounds: usize,
    /// The smallest and the largest ratio of a round.
    range: [f64; 2],
}

/// The medians of one arm's rounds.
#[derive(Debug, Serialize)]
pub(crate) struct ArmFigures {
    name: String,
    /// Operations per second.
    rate: f64,
    /// Microseconds; `None` for an arm whose operations are not timed.
    p50: Option<f64>,
    p99: Option<f64>,
    /// Operations per second in each round.
    rates: Vec<f64>,
    /// Microseconds that 99 of 100 operations took at most, in each round.
    p99s: Option<Vec<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Target {
    at_least: Option<f64>,
    at_most: Option<f64>,
    /// The row is for information, and any figure passes.
    #[serde(default)]
    informative: bool,
}

impl Row {
    /// A row from the figures of each round, ours first.
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        Self::of(name.into(), unit, rounds, |ours, peer| ours / peer)
    }

    /// A row whose figure is the peer's over ours, for quantities that should be small.
    pub(crate) fn gain(name: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        Self::of(name.into(), unit, rounds, |ours, peer| peer / ours)
    }

    /// A row whose figure is ours minus the peer's, in the unit of the row.
    pub(crate) fn difference(name: impl Into<String>, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        Self::of(name.into(), unit, rounds, |ours, peer| ours - peer)
    }

    /// A row of ours without a peer.
    pub(crate) fn figure(
        name: impl Into<String>,
        unit: &'static str,
        rounds: impl Iterator<Item = f64>,
    ) -> Self {
        let alone: Vec<_> = rounds.map(|figure| (figure, 0.0)).collect();
        Self::difference(name, unit, &alone)
    }

    /// The lowest of these rows, under another name.
    pub(crate) fn lowest(name: impl Into<String>, rows: &[Self]) -> Self {
        let lowest = rows.iter().min_by(|one, other| one.ratio.total_cmp(&other.ratio));
        Self { name: name.into(), ..lowest.expect("there are rows").clone() }
    }

    /// The highest of these rows, under another name.
    pub(crate) fn highest(name: impl Into<String>, rows: &[Self]) -> Self {
        let highest = rows.iter().max_by(|one, other| one.ratio.total_cmp(&other.ratio));
        Self { name: name.into(), ..highest.expect("there are rows").clone() }
    }

    fn of(name: String, unit: &'static str, rounds: &[(f64, f64)], figure: fn(f64, f64) -> f64) -> Self {
        let figures = sorted(rounds.iter().map(|(ours, peer)| figure(*ours, *peer)));
        Self {
            name,
            ratio: median(&figures),
            ours: median(&sorted(rounds.iter().map(|(ours, _)| *ours))),
            peer: median(&sorted(rounds.iter().map(|(_, peer)| *peer))),
            unit,
            rounds: rounds.len(),
            range: [figures[0], figures[figures.len() - 1]],
        }
    }
}

impl ArmFigures {
    /// From the arm's slices of all rounds.
    pub(crate) fn of(name: &str, rounds: &[Slice]) -> Self {
        let latencies: Option<Vec<_>> = rounds.iter().map(|slice| slice.latency).collect();
        Self {
            name: name.to_owned(),
            rate: median(&sorted(rounds.iter().map(|slice| slice.rate))),
            p50: latencies.as_ref().map(|them| median(&sorted(them.iter().map(|latency| latency.p50)))),
            p99: latencies.as_ref().map(|them| median(&sorted(them.iter().map(|latency| latency.p99)))),
            rates: rounds.iter().map(|slice| slice.rate).collect(),
            p99s: latencies.map(|all| all.iter().map(|latency| latency.p99).collect()),
        }
    }
}

impl Report {
    /// Adds rows that were measured later on the same server.
    pub(crate) fn extend(&mut self, later: Self) {
        self.arms.extend(later.arms);
        self.rows.extend(later.rows);
    }

    /// The rows that miss their targets, one line each. A row without a target counts as a miss.
    pub(crate) fn check(&self, targets: &str) -> anyhow::Result<Vec<String>> {
        let targets: BTreeMap<String, BTreeMap<String, Target>> =
            toml::from_str(targets).context("targets.toml")?;
        let mut short = Vec::new();
        for row in &self.rows {
            // The part of a row's name before the first dot is a table in the file, the rest a key in it.
            let (topic, name) = row.name.split_once('.').unwrap_or((&row.name, ""));
            match targets.get(topic).and_then(|topic| topic.get(name)) {
                None => short.push(format!("{} has no target", row.name)),
                Some(Target { at_least: None, at_most: None, informative: false }) => {
                    short.push(format!("{} has an empty target", row.name));
                }
                Some(target) if target.is_met_by(row.ratio) => {}
                Some(target) => short.push(format!("{} is {:.3}, {target}", row.name, row.ratio)),
            }
        }
        Ok(short)
    }
}

impl Target {
    /// Written so that NaN meets no target.
    fn is_met_by(&self, figure: f64) -> bool {
        self.at_least.is_none_or(|least| figure >= least) && self.at_most.is_none_or(|most| figure <= most)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("but must be")?;
        for (words, limit) in [("at least", self.at_least), ("at most", self.at_most)] {
            if let Some(limit) = limit {
                write!(f, " {words} {limit}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "on {}", self.server)?;
        let names = self.arms.iter().map(|arm| &arm.name).chain(self.rows.iter().map(|row| &row.name));
        let width = names.map(String::len).max().unwrap_or(0);
        for ArmFigures { name, rate, p50, p99, .. } in &self.arms {
            write!(f, "{name:<width$} {rate:>10.0} ops/s")?;
            if let (Some(p50), Some(p99)) = (p50, p99) {
                write!(f, "   p50 {p50:>6.0} us   p99 {p99:>6.0} us")?;
            }
            writeln!(f)?;
        }
        for Row { name, ratio, ours, peer, unit, rounds, range: [least, most] } in &self.rows {
            writeln!(
                f,
                "{name:<width$} {ratio:>10.3} [{least:.3}-{most:.3}]  {} against {} {unit}, {rounds} rounds",
                short(*ours),
                short(*peer)
            )?;
        }
        Ok(())
    }
}

/// Formats a figure with its significant digits.
fn short(figure: f64) -> String {
    if figure.abs() < 100.0 { format!("{figure:.1}") } else { format!("{figure:.0}") }
}

pub(crate) fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

/// The middle figure, or the mean of the two middle ones.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows: Vec<Row>) -> Report {
        Report { server: "one".to_owned(), arms: Vec::new(), rows }
    }

    fn row(name: &str, ratio: f64) -> Row {
        Row::new(name, "x/s", &[(ratio, 1.0), (ratio, 1.0), (9.0, 1.0)])
    }

    #[test]
    fn a_row_that_misses_its_target_or_has_none_is_reported() {
        let report =
            report(vec![row("a.good", 0.5), row("a.low", 0.1), row("a.high", 3.0), row("a.none", 1.0)]);

        let short =
            report.check("[a.good]\nat_least = 0.5\n[a.low]\nat_least = 0.25\n[a.high]\nat_most = 2.0\n");

        let short = short.expect("good targets");
        assert_eq!(
            short,
            [
                "a.low is 0.100, but must be at least 0.25",
                "a.high is 3.000, but must be at most 2",
                "a.none has no target"
            ]
        );
    }

    #[test]
    fn a_name_with_several_dots_is_a_quoted_key() {
        let report = report(vec![row("pool.10.vs_x", 2.0), row("pool.64.vs_x", 2.0)]);

        let short =
            report.check("[pool]\n\"10.vs_x\" = { at_least = 1.0 }\n\"64.vs_x\" = { at_least = 3.0 }\n");

        assert_eq!(short.expect("good targets"), ["pool.64.vs_x is 2.000, but must be at least 3"]);
    }

    #[test]
    fn a_row_without_a_limit_must_be_informative() {
        let report = report(vec![row("a.read", 2.0), row("a.empty", 2.0)]);

        let short = report.check("[a]\nread = { informative = true }\nempty = {}\n");

        assert_eq!(short.expect("good targets"), ["a.empty has an empty target"]);
        assert!(report.check("[a]\nread = { at_leats = 1.0 }\n").is_err());
    }

    #[test]
    fn nan_meets_no_target() {
        let report = report(vec![row("a.least", f64::NAN), row("a.most", f64::NAN)]);

        let short = report.check("[a]\nleast = { at_least = 1.0 }\nmost = { at_most = 1.0 }\n");

        assert_eq!(short.expect("good targets").len(), 2);
    }

    #[test]
    fn a_figure_is_the_median_of_the_rounds_ratios() {
        let rounds = [(100.0, 10.0), (30.0, 20.0), (50.0, 40.0)];

        let ratio = Row::new("a.ratio", "x/s", &rounds);
        let difference = Row::difference("a.difference", "ns", &rounds);

        assert_eq!(serde_json::json!([ratio.ratio, ratio.range]), serde_json::json!([1.5, [1.25, 10.0]]));
        assert_eq!(
            serde_json::to_value(&difference).expect("JSON"),
            serde_json::json!({
                "name": "a.difference", "ratio": 10.0, "ours": 50.0, "peer": 20.0, "unit": "ns", "rounds": 3,
                "range": [10.0, 90.0]
            })
        );
    }
}
