//! The rule of readiness: a pure value, which beats change.

use std::fmt;
use std::time::Duration;

/// Bad beats in a row after which a service is not ready.
const BAD: u32 = 3;

/// Good beats in a row after which it is ready again.
const GOOD: u32 = 2;

/// How long the API pool may be full, with callers who wait, and give nothing back.
const STUCK: Duration = Duration::from_secs(10);

/// How old the last beat may be.
const STALE: Duration = Duration::from_secs(10);

/// Why a service cannot serve requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotReady {
    /// The service is shutting down.
    Closing,
    /// The database has not answered for three looks in a row, and no statement of a pool was answered meanwhile.
    Database,
    /// All connections of the API pool are in use, callers wait or are turned away, and none was given back for 10 s.
    Stuck,
    /// The last look is older than 10 s: the runtime does not come to it.
    Stale,
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closing => "the service is shutting down",
            Self::Database => "the database does not answer",
            Self::Stuck => "the API pool is full, callers wait, and nothing was given back for 10 s",
            Self::Stale => "the last look at the database is older than 10 s",
        })
    }
}

/// What a look has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beat {
    /// The time since the first one.
    pub(crate) at: Duration,
    /// Whether the database has answered.
    pub(crate) answered: bool,
    /// The connections that all pools were given back with an answer, in all.
    pub(crate) returned: u64,
    pub(crate) api: Api,
}

/// The API pool at a beat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Api {
    /// Whether no connection is idle, and no more may be opened.
    pub(crate) is_full: bool,
    /// The callers who wait.
    pub(crate) waiting: u32,
    /// The callers who were turned away, in all.
    pub(crate) turned_away: u64,
    /// The connections that were handed out, in all: one that is given back to a full pool goes to the next caller in the queue.
    pub(crate) handed_out: u64,
}

/// Whether a service is ready, by the beats so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness {
    last: Option<Beat>,
    bad: u32,
    good: u32,
    /// Since when the API pool is full, with callers who wait, and gives nothing back.
    full_since: Option<Duration>,
    down: Option<NotReady>,
}

impl Readiness {
    pub(crate) fn beat(&mut self, beat: Beat) {
        let last = self.last.replace(beat);
        let is_good = beat.answered || last.is_some_and(|last| beat.returned != last.returned);
        let moves = last.is_none_or(|last| last.api.handed_out != beat.api.handed_out);
        let is_wanted =
            beat.api.waiting > 0 || last.is_some_and(|last| last.api.turned_away != beat.api.turned_away);
        self.full_since = match self.full_since {
            _ if !beat.api.is_full || !is_wanted => None,
            Some(since) if !moves => Some(since),
            _ => Some(beat.at),
        };
        let is_stuck = self.full_since.is_some_and(|since| beat.at.saturating_sub(since) >= STUCK);

        self.bad = if is_good { 0 } else { self.bad + 1 };
        self.good = if is_good && !is_stuck { self.good + 1 } else { 0 };
        if is_stuck {
            self.down = Some(NotReady::Stuck);
        } else if self.bad >= BAD {
            self.down = Some(NotReady::Database);
        } else if self.good >= GOOD {
            self.down = None;
        }
    }

    /// Why the service is not ready at this time since the first beat.
    pub(crate) fn not_ready(&self, now: Duration) -> Option<NotReady> {
        let age = self.last.map_or(now, |last| now.saturating_sub(last.at));
        if age > STALE { Some(NotReady::Stale) } else { self.down }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Api, Beat, NotReady, Readiness};

    const CALM: Api = Api { is_full: false, waiting: 0, turned_away: 0, handed_out: 0 };

    fn beats(all: impl IntoIterator<Item = Beat>) -> Readiness {
        let mut readiness = Readiness::default();
        all.into_iter().for_each(|beat| readiness.beat(beat));
        readiness
    }

    /// One every 2 s.
    fn nth(n: u64, answered: bool) -> Beat {
        Beat { at: Duration::from_secs(2 * n), answered, returned: 0, api: CALM }
    }

    fn after(answers: &[bool]) -> Option<NotReady> {
        let beats = beats((0..).zip(answers).map(|(n, answered)| nth(n, *answered)));
        beats.not_ready(Duration::from_secs(2 * answers.len() as u64))
    }

    #[test]
    fn three_bad_beats_in_a_row_are_needed_and_two_good_ones_afterwards() {
        const DOWN: Option<NotReady> = Some(NotReady::Database);
        assert_eq!(after(&[]), None);
        assert_eq!(after(&[false, false]), None);
        assert_eq!(after(&[false, false, true, false, false]), None);
        assert_eq!(after(&[true, false, false, false]), DOWN);
        assert_eq!(after(&[false, false, false, true]), DOWN);
        assert_eq!(after(&[false, false, false, true, false, true]), DOWN);
        assert_eq!(after(&[false, false, false, true, true]), None);
    }

    #[test]
    fn a_beat_that_gets_no_answer_is_good_if_a_statement_of_a_pool_did() {
        let busy = (0..20).map(|n| Beat { returned: n, ..nth(n, false) });

        assert_eq!(beats(busy).not_ready(Duration::from_secs(40)), None);
    }

    #[test]
    fn a_look_that_is_too_old_counts_for_nothing() {
        let last = beats([nth(0, true)]);

        assert_eq!(last.not_ready(Duration::from_secs(10)), None);
        assert_eq!(last.not_ready(Duration::from_secs(11)), Some(NotReady::Stale));
        assert_eq!(Readiness::default().not_ready(Duration::from_secs(11)), Some(NotReady::Stale));
    }

    /// The history that a service might have.
    fn random(random: &mut fastrand::Rng) -> Vec<Beat> {
        let mut beat = nth(0, true);
        let (mut answers, mut is_full) = (0.9, 0.1);
        (0..random.u64(1..60))
            .map(|_| {
                if random.f64() < 0.1 {
                    (answers, is_full) = (random.f64(), random.f64());
                }
                beat.answered = random.f64() < answers;
                beat.returned += u64::from(random.f64() < 0.1);
                beat.api.is_full = random.f64() < 0.3 + is_full;
                beat.api.waiting = u32::from(random.f64() < is_full);
                beat.api.turned_away += u64::from(random.f64() < 0.3);
                beat.api.handed_out += u64::from(random.f64() < 0.1);
                let now = beat;
                beat.at += Duration::from_millis(random.u64(1000..5000));
                now
            })
            .collect()
    }

    /// The rule once more, by looking at the whole history for each beat.
    fn model(history: &[Beat]) -> Option<NotReady> {
        let is_good =
            |n: usize| history[n].answered || n > 0 && history[n].returned != history[n - 1].returned;
        let presses = |n: usize| {
            let api = history[n].api;
            let turned_away = n > 0 && history[n - 1].api.turned_away != api.turned_away;
            api.is_full && (api.waiting > 0 || turned_away)
        };
        let is_stuck = |n: usize| {
            let same = |m: usize| presses(m) && history[m].api.handed_out == history[n].api.handed_out;
            let first = (0..=n).rev().take_while(|m| same(*m)).last();
            first.is_some_and(|first| {
                history[n].at.saturating_sub(history[first].at) >= Duration::from_secs(10)
            })
        };
        let fails = |n: usize| n >= 2 && (n - 2..=n).all(|m| !is_good(m));
        let recovers = |n: usize| n >= 1 && (n - 1..=n).all(|m| is_good(m) && !is_stuck(m));
        let mut down = None;
        for n in 0..history.len() {
            down = match () {
                () if is_stuck(n) => Some(NotReady::Stuck),
                () if fails(n) => Some(NotReady::Database),
                () if recovers(n) => None,
                () => down,
            };
        }
        down
    }

    #[test]
    fn in_ten_thousand_histories_it_is_what_a_look_at_the_whole_history_says() {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut seen = [0_u32; 3];
        for _ in 0..10_000 {
            let history = random(&mut rng);
            let mut readiness = Readiness::default();
            for n in 0..history.len() {
                readiness.beat(history[n]);
                let is = readiness.not_ready(history[n].at);
                assert_eq!(is, model(&history[..=n]), "{:#?}", &history[..=n]);
                seen[match is {
                    None => 0,
                    Some(NotReady::Database) => 1,
                    _ => 2,
                }] += 1;
            }
        }
        assert!(seen.iter().all(|times| *times > 10_000), "{seen:?}");
    }
}
