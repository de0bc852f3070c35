//! Rows of figures.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::Context;
use serde::{Deserialize, Serialize};

/// What a topic found out.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
}

/// Ours beside a peer: the medians of the rounds, and the median of the rounds' ratios.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    name: &'static str,
    ratio: f64,
    ours: f64,
    peer: f64,
    unit: &'static str,
    rounds: usize,
    /// The smallest and the largest ratio of a round.
    range: [f64; 2],
}

#[derive(Debug, Deserialize)]
struct Target {
    at_least: Option<f64>,
    at_most: Option<f64>,
}

impl Row {
    /// A row from what each round measured, ours first.
    pub(crate) fn new(name: &'static str, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        let ratios = sorted(rounds.iter().map(|(ours, peer)| ours / peer));
        Self {
            name,
            ratio: median(&ratios),
            ours: median(&sorted(rounds.iter().map(|(ours, _)| *ours))),
            peer: median(&sorted(rounds.iter().map(|(_, peer)| *peer))),
            unit,
            rounds: rounds.len(),
            range: [ratios[0], ratios[ratios.len() - 1]],
        }
    }
}

impl Report {
    /// What falls short of the targets, a line each. A row without a target is one, too.
    pub(crate) fn check(&self, targets: &str) -> anyhow::Result<Vec<String>> {
        let targets: BTreeMap<String, BTreeMap<String, Target>> =
            toml::from_str(targets).context("targets.toml")?;
        let mut short = Vec::new();
        for row in &self.rows {
            let (topic, name) = row.name.split_once('.').unwrap_or((row.name, ""));
            let Some(target) = targets.get(topic).and_then(|topic| topic.get(name)) else {
                short.push(format!("{} has no target", row.name));
                continue;
            };
            if target.at_least.is_some_and(|least| row.ratio < least)
                || target.at_most.is_some_and(|most| row.ratio > most)
            {
                short.push(format!("{} is {:.3}, which misses {target:?}", row.name, row.ratio));
            }
        }
        Ok(short)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Row { name, ratio, ours, peer, unit, rounds, range: [least, most] } in &self.rows {
            writeln!(
                f,
                "{name:<24} {ratio:>7.3} [{least:.3}-{most:.3}]  {ours:.0} against {peer:.0} {unit}, {rounds} rounds"
            )?;
        }
        Ok(())
    }
}

fn sorted(figures: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures
}

fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_misses_its_target_or_has_none_is_named() {
        let row = |name, ratio| Row::new(name, "x/s", &[(ratio, 1.0), (ratio, 1.0), (9.0, 1.0)]);
        let report = Report {
            rows: vec![row("a.good", 0.5), row("a.low", 0.1), row("a.high", 3.0), row("a.none", 1.0)],
        };

        let short =
            report.check("[a.good]\nat_least = 0.5\n[a.low]\nat_least = 0.25\n[a.high]\nat_most = 2.0\n");

        let short = short.expect("good targets");
        assert_eq!(short.len(), 3, "{short:?}");
        assert!(
            short[0].starts_with("a.low is 0.100")
                && short[1].starts_with("a.high")
                && short[2].starts_with("a.none")
        );
    }
}
