//! Arms that take turns in rounds.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::load::Slice;
use crate::report::{ArmFigures, Report, Row};

/// Long enough to open every connection and prepare every statement.
const OPENING: Duration = Duration::from_millis(20);

/// One way to do an operation, ours or a peer's.
pub(crate) struct Arm<'a> {
    name: String,
    slice: Duration,
    run: Box<dyn Fn(Duration) -> anyhow::Result<Slice> + 'a>,
}

impl<'a> Arm<'a> {
    /// An arm with turns of length `slice`.
    pub(crate) fn new(
        name: impl Into<String>,
        slice: Duration,
        run: impl Fn(Duration) -> anyhow::Result<Slice> + 'a,
    ) -> Self {
        Self { name: name.into(), slice, run: Box::new(run) }
    }

    /// The same arm with turns of another length.
    pub(crate) fn lasting(self, slice: Duration) -> Self {
        Self { slice, ..self }
    }

    fn run(&self, slice: Duration) -> anyhow::Result<Slice> {
        (self.run)(slice).with_context(|| self.name.clone())
    }
}

/// Keeps only the arms named in `only`, if there are any. Returns whether there were.
pub(crate) fn narrow(arms: &mut Vec<Arm<'_>>, only: &[String]) -> anyhow::Result<bool> {
    if only.is_empty() {
        return Ok(false);
    }
    let names: Vec<_> = arms.iter().map(|arm| arm.name.as_str()).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no `{unknown}`: {}", names.join(", "));
    }
    arms.retain(|arm| only.contains(&arm.name));
    Ok(true)
}

/// The slices of all arms in all rounds.
#[derive(Debug)]
pub(crate) struct Measured {
    /// In the order of the arms.
    names: Vec<String>,
    slices: BTreeMap<String, Vec<Slice>>,
}

/// Runs every arm once in each round, in reverse order in every other round, since each arm finds the processor and the server in
/// the state in which its predecessor left them.
pub(crate) fn interleave(arms: &[Arm<'_>], rounds: usize) -> anyhow::Result<Measured> {
    for arm in arms {
        arm.run(OPENING)?;
    }
    let mut slices = BTreeMap::<String, Vec<Slice>>::new();
    for round in 0..rounds {
        let mut order: Vec<_> = arms.iter().collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for arm in order {
            slices.entry(arm.name.clone()).or_default().push(arm.run(arm.slice)?);
        }
    }
    Ok(Measured { names: arms.iter().map(|arm| arm.name.clone()).collect(), slices })
}

impl Measured {
    /// A row of two arms' operations per second.
    pub(crate) fn rates(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let rate = |slice: &Slice| slice.rate;
        Row::new(name, "ops/s", &self.pairs((ours, rate), (peer, rate)))
    }

    /// A row of the time that an operation takes in two arms.
    pub(crate) fn times(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let nanoseconds = |slice: &Slice| 1e9 / slice.rate;
        Row::new(name, "ns", &self.pairs((ours, nanoseconds), (peer, nanoseconds)))
    }

    /// A row of the time that something adds to an operation: two arms with it and without, and a peer's two. Never less than nothing, which
    /// only noise can say.
    pub(crate) fn added(&self, name: impl Into<String>, ours: (&str, &str), peer: (&str, &str)) -> Row {
        let added = |(with, without)| {
            let nanoseconds = |slice: &Slice| 1e9 / slice.rate;
            let pairs = self.pairs((with, nanoseconds), (without, nanoseconds));
            pairs.into_iter().map(|(with, without)| (with - without).max(0.0)).collect::<Vec<_>>()
        };
        let pairs: Vec<_> = added(ours).into_iter().zip(added(peer)).collect();
        Row::new(name, "ns", &pairs)
    }

    /// A row of two arms' median latencies.
    pub(crate) fn p50s(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let p50 = |slice: &Slice| slice.latency.map_or(f64::NAN, |latency| latency.p50);
        Row::new(name, "us", &self.pairs((ours, p50), (peer, p50)))
    }

    /// A row of two arms' median latencies, the peer's over ours.
    pub(crate) fn p50_gains(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let p50 = |slice: &Slice| slice.latency.map_or(f64::NAN, |latency| latency.p50);
        Row::gain(name, "us", &self.pairs((ours, p50), (peer, p50)))
    }

    /// A row of the server's processor time for each append of two arms.
    pub(crate) fn cpus(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let busy = |slice: &Slice| slice.cost.map_or(f64::NAN, |cost| cost.processor);
        Row::new(name, "us per append", &self.pairs((ours, busy), (peer, busy)))
    }

    /// A row of the queries for each append of two arms.
    pub(crate) fn queries(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let queries = |slice: &Slice| slice.cost.map_or(f64::NAN, |cost| cost.queries);
        Row::new(name, "queries per append", &self.pairs((ours, queries), (peer, queries)))
    }

    /// A row of one arm's operations per second, as a share of the most there can be.
    pub(crate) fn share(&self, name: impl Into<String>, arm: &str, most: f64) -> Row {
        Row::figure(name, "of 1", self.slices_of(arm).iter().map(|slice| slice.rate / most))
    }

    /// A row of one arm's median latency, in milliseconds.
    pub(crate) fn p50_ms(&self, name: impl Into<String>, arm: &str) -> Row {
        let p50 = |slice: &Slice| slice.latency.map_or(f64::NAN, |latency| latency.p50) / 1000.0;
        Row::figure(name, "ms", self.slices_of(arm).iter().map(p50))
    }

    /// A row of one arm's 99th percentile, in milliseconds.
    pub(crate) fn p99_ms(&self, name: impl Into<String>, arm: &str) -> Row {
        let p99 = |slice: &Slice| slice.latency.map_or(f64::NAN, |latency| latency.p99) / 1000.0;
        Row::figure(name, "ms", self.slices_of(arm).iter().map(p99))
    }

    /// A row of two arms' 99th percentiles.
    pub(crate) fn p99s(&self, name: impl Into<String>, ours: &str, peer: &str) -> Row {
        let p99 = |slice: &Slice| slice.latency.map_or(f64::NAN, |latency| latency.p99);
        Row::new(name, "us", &self.pairs((ours, p99), (peer, p99)))
    }

    /// A row of the operations of an arm's busiest task over those of its least busy one.
    pub(crate) fn fairness(&self, name: impl Into<String>, arm: &str) -> Row {
        let most = |slice: &Slice| f64::from(slice.most);
        // At least 1, since the ratio with 0 would not be a number.
        let fewest = |slice: &Slice| f64::from(slice.fewest.max(1));
        Row::new(name, "ops per task", &self.pairs((arm, most), (arm, fewest)))
    }

    /// A report of these rows and of each arm's own figures.
    pub(crate) fn report(&self, server: String, rows: Vec<Row>) -> Report {
        let arms = self.names.iter().map(|name| ArmFigures::of(name, self.slices_of(name))).collect();
        Report { server, arms, rows }
    }

    fn slices_of(&self, arm: &str) -> &[Slice] {
        self.slices.get(arm).map_or(&[], Vec::as_slice)
    }

    fn pairs(
        &self,
        (ours, of_ours): (&str, impl Fn(&Slice) -> f64),
        (peer, of_peer): (&str, impl Fn(&Slice) -> f64),
    ) -> Vec<(f64, f64)> {
        let ours = self.slices_of(ours).iter().map(of_ours);
        ours.zip(self.slices_of(peer).iter().map(of_peer)).collect()
    }
}
