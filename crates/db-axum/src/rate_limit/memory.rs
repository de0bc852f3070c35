//! What each client has used, in this process.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::{Mutex, MutexGuard, PoisonError};
#[cfg(feature = "redis")]
use std::time::Duration;
use std::time::Instant;

use foldhash::fast::RandomState;
#[cfg(feature = "redis")]
use smallvec::SmallVec;

use super::client::Client;
use super::limit::{self, Buckets, Rule, Verdict, nanos};

/// The most clients that are remembered.
const MOST: usize = 100_000;

/// Requests of different clients mostly meet different locks.
const PARTS: usize = 16;

#[derive(Debug)]
pub(super) struct Memory {
    began: Instant,
    hasher: RandomState,
    parts: [Mutex<Part>; PARTS],
}

type Part = HashMap<Client, Buckets, RandomState>;

impl Default for Memory {
    fn default() -> Self {
        Self { began: Instant::now(), hasher: RandomState::default(), parts: Default::default() }
    }
}

impl Memory {
    pub(super) fn take(&self, rules: &[Rule], client: &Client, cost: u32) -> Verdict {
        let now = self.now();
        let mut part = self.part(client);
        limit::take(rules, entry(&mut part, client, now), now, cost)
    }

    /// After what time each bucket of a client is full again.
    #[cfg(feature = "redis")]
    pub(super) fn debts(&self, client: &Client, buckets: usize, now: u64) -> SmallVec<[Duration; 2]> {
        let known = self.part(client).get(client).map(|buckets| limit::debts(buckets, now));
        let mut debts = known.unwrap_or_default();
        debts.resize(buckets, Duration::ZERO);
        debts
    }

    /// Remembers what was known elsewhere at that time.
    #[cfg(feature = "redis")]
    pub(super) fn learn(&self, client: &Client, debts: &[Duration], now: u64) {
        let mut part = self.part(client);
        let buckets = entry(&mut part, client, now);
        buckets.resize(debts.len(), 0);
        for (full_at, debt) in buckets.iter_mut().zip(debts) {
            *full_at = now.saturating_add(nanos(*debt)).max(*full_at);
        }
    }

    /// In nanoseconds since the beginning.
    pub(super) fn now(&self) -> u64 {
        nanos(self.began.elapsed())
    }

    fn part(&self, client: &Client) -> MutexGuard<'_, Part> {
        let hash = usize::try_from(self.hasher.hash_one(client) % PARTS as u64).unwrap_or(0);
        self.parts[hash].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The buckets of a client, full ones if it is not known.
fn entry<'a>(part: &'a mut Part, client: &Client, now: u64) -> &'a mut Buckets {
    if part.len() >= MOST / PARTS && !part.contains_key(client) {
        forget(part, now);
    }
    part.entry(*client).or_default()
}

/// Forgets those who may do all that a new client may, and if these are few, the quarter of the others that comes next.
fn forget(part: &mut Part, now: u64) {
    let full_at = |buckets: &Buckets| buckets.iter().copied().max().unwrap_or(0);
    part.retain(|_, buckets| full_at(buckets) > now);
    let room = MOST / PARTS / 4;
    if part.len() + room <= MOST / PARTS {
        return;
    }
    let mut all: Vec<u64> = part.values().map(full_at).collect();
    let (_, last, _) = all.select_nth_unstable(room);
    let last = *last;
    part.retain(|_, buckets| full_at(buckets) > last);
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::super::limit::Limit;
    use super::*;

    #[test]
    fn of_a_million_clients_the_most_are_remembered_and_those_first_that_have_used_the_most() {
        let rules = [Rule::new(Limit::per_hour(10)).expect("a limit")];
        let memory = Memory::default();
        let client = |number: u32| Client::at(Ipv4Addr::from_bits(number).into());
        for _ in 0..10 {
            assert_eq!(memory.take(&rules, &client(0), 1).refused_for, None);
        }

        for number in 1..1_000_000 {
            assert_eq!(memory.take(&rules, &client(number), 1).refused_for, None);
        }

        let known: usize = memory.parts.iter().map(|part| part.lock().expect("no panic").len()).sum();
        assert!((MOST / 2..=MOST).contains(&known), "{known}");
        assert!(memory.take(&rules, &client(0), 1).refused_for.is_some(), "it is not forgotten");
    }

    #[cfg(feature = "redis")]
    #[test]
    fn what_is_learnt_never_makes_a_client_richer() {
        let rules = [Rule::new(Limit::per_hour(10)).expect("a limit")];
        let memory = Memory::default();
        let client = Client::of(b"somebody");
        let hour = Duration::from_hours(1);

        memory.learn(&client, &[hour], memory.now());
        memory.learn(&client, &[Duration::ZERO], memory.now());

        assert!(memory.take(&rules, &client, 1).refused_for.is_some());
        assert!(memory.debts(&client, 1, memory.now())[0] > hour / 2);
        assert_eq!(memory.debts(&Client::of(b"another"), 2, memory.now()).as_slice(), [Duration::ZERO; 2]);
    }
}
