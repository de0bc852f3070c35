//! What ran: a count for each statement, bounded.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime};

use db_core::{CallSite, Observer, StatementDone};
use foldhash::quality::RandomState;

use crate::mean::mean;
use crate::stripes::Stripes;

/// The most lines that are told apart for a statement.
const LINES: usize = 10;

/// The most characters of a statement that are kept.
const LENGTH: usize = 1000;

/// How many texts lead to one statement, on average, before they are looked up anew: they differ in literals.
const TEXTS: usize = 8;

/// What of each statement's use counts when the least used make room, so that what was used long ago goes, too. This is the rule of
/// `pg_stat_statements`, and the twentieth that goes is, too.
const DECAY: f64 = 0.99;

/// The statements of a database that this process ran since it was opened, or since the last reset.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StatementCounts {
    /// Since when it is counted.
    pub since: SystemTime,
    /// The statements, those that took longest in all first.
    pub statements: Vec<StatementCount>,
    /// How often a statement was forgotten to make room for others: once for each group of threads that knew it.
    pub forgotten: u64,
}

/// What a statement has cost.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct StatementCount {
    /// The name that [`Handle::named`](db_core::Handle::named) gave.
    pub name: Option<&'static str>,
    /// Its text on one line, without comments, literals and numbers; cut after 1000 characters.
    pub text: String,
    /// How often it ended, well or not, or passed its time limit. One whose future was dropped before is not counted.
    pub calls: u64,
    /// How often it failed, or passed its time limit.
    pub errors: u64,
    /// How long it took in all.
    pub total: Duration,
    /// How long it took at most.
    pub max: Duration,
    /// Rows returned or affected.
    pub rows: u64,
    /// The lines that asked for its connection, with their calls, those with the most first; ten are told apart.
    pub lines: Vec<(CallSite, u64)>,
}

impl StatementCount {
    /// How long it took on average.
    #[must_use]
    pub fn mean(&self) -> Duration {
        mean(self.total, self.calls)
    }
}

/// Counts statements, as an observer of pools.
#[derive(Debug)]
pub(crate) struct Statements {
    most: usize,
    hasher: RandomState,
    tables: Stripes<Table>,
}

/// What some threads ran. It knows statements by the hash of their name and text. That two of some hundred have the same hash of 64 bits does
/// not happen: it is seeded at random.
#[derive(Debug)]
struct Table {
    most: usize,
    since: SystemTime,
    forgotten: u64,
    entries: Vec<Entry>,
    /// The places of entries by the hash of the text as it was sent.
    by_text: HashMap<u64, usize, RandomState>,
    /// The places of entries by the hash of the normal form.
    by_form: HashMap<u64, usize, RandomState>,
}

#[derive(Debug, Clone)]
struct Entry {
    form: u64,
    used: f64,
    count: StatementCount,
}

impl Statements {
    /// Counts up to `most` statements, at least 1.
    pub(crate) fn new(most: usize) -> Self {
        let most = most.max(1);
        let since = now();
        Self { most, hasher: RandomState::default(), tables: Stripes::new(|| Table::new(most, since)) }
    }

    pub(crate) fn counts(&self) -> StatementCounts {
        let (mut since, mut forgotten) = (now(), 0);
        let mut by_form: HashMap<u64, Entry, RandomState> = HashMap::default();
        for table in self.tables.all() {
            since = since.min(table.since);
            forgotten += table.forgotten;
            for entry in &table.entries {
                by_form.entry(entry.form).and_modify(|sum| sum.add(entry)).or_insert_with(|| entry.clone());
            }
        }
        let mut entries: Vec<Entry> = by_form.into_values().collect();
        entries.sort_by(|one, other| other.used.total_cmp(&one.used));
        entries.truncate(self.most);
        let mut statements: Vec<_> = entries.into_iter().map(|entry| entry.count).collect();
        statements.sort_by_key(|count| std::cmp::Reverse(count.total));
        for count in &mut statements {
            count.lines.sort_by_key(|(_, calls)| std::cmp::Reverse(*calls));
            count.lines.truncate(LINES);
        }
        StatementCounts { since, statements, forgotten }
    }

    pub(crate) fn reset(&self) {
        let since = now();
        for mut table in self.tables.all() {
            *table = Table::new(self.most, since);
        }
    }
}

impl Observer for Statements {
    fn statement(&self, done: &StatementDone<'_>) {
        let text = self.hasher.hash_one((done.name, done.sql));
        let mut table = self.tables.own();
        if let Some(&place) = table.by_text.get(&text) {
            table.entries[place].count(done);
            return;
        }
        drop(table);
        // A text that is long takes a while.
        let normal = done.normalized();
        let form = self.hasher.hash_one((done.name, &normal));
        self.tables.own().take(text, form, &normal, done);
    }
}

#[expect(clippy::disallowed_methods, reason = "people read it")]
fn now() -> SystemTime {
    SystemTime::now()
}

impl Table {
    fn new(most: usize, since: SystemTime) -> Self {
        Self {
            most,
            since,
            forgotten: 0,
            entries: Vec::new(),
            by_text: HashMap::default(),
            by_form: HashMap::default(),
        }
    }

    fn take(&mut self, text: u64, form: u64, normal: &str, done: &StatementDone<'_>) {
        let known = self.by_form.get(&form).copied();
        let place = known.unwrap_or_else(|| {
            if self.entries.len() >= self.most {
                self.make_room();
            }
            self.entries.push(Entry::new(form, normal, done.name));
            let place = self.entries.len() - 1;
            self.by_form.insert(form, place);
            place
        });
        if self.by_text.len() >= self.most.saturating_mul(TEXTS) {
            self.by_text.clear();
        }
        self.by_text.insert(text, place);
        self.entries[place].count(done);
    }

    /// Forgets a twentieth of the statements, those with the least use.
    fn make_room(&mut self) {
        for entry in &mut self.entries {
            entry.used *= DECAY;
        }
        self.entries.sort_by(|one, other| other.used.total_cmp(&one.used));
        let goes = (self.entries.len() / 20).max(1);
        self.forgotten += goes as u64;
        self.entries.truncate(self.entries.len() - goes);
        self.by_text.clear();
        self.by_form = self.entries.iter().enumerate().map(|(place, entry)| (entry.form, place)).collect();
    }
}

impl Entry {
    fn new(form: u64, normal: &str, name: Option<&'static str>) -> Self {
        let mut text: String = normal.chars().take(LENGTH).collect();
        if text.len() < normal.len() {
            text.push('…');
        }
        let count = StatementCount {
            name,
            text,
            calls: 0,
            errors: 0,
            total: Duration::ZERO,
            max: Duration::ZERO,
            rows: 0,
            lines: Vec::new(),
        };
        Self { form, used: 0.0, count }
    }

    /// Adds what other threads have counted.
    fn add(&mut self, other: &Self) {
        self.used += other.used;
        let StatementCount { calls, errors, total, max, rows, lines, .. } = &mut self.count;
        *calls += other.count.calls;
        *errors += other.count.errors;
        *total += other.count.total;
        *max = other.count.max.max(*max);
        *rows += other.count.rows;
        for (at, more) in &other.count.lines {
            match lines.iter_mut().find(|(known, _)| known == at) {
                Some((_, calls)) => *calls += more,
                None => lines.push((*at, *more)),
            }
        }
    }

    fn count(&mut self, done: &StatementDone<'_>) {
        self.used += 1.0;
        let StatementCount { calls, errors, total, max, rows, lines, .. } = &mut self.count;
        *calls += 1;
        *errors += u64::from(done.error.is_some());
        *total += done.took;
        *max = done.took.max(*max);
        // A row that is returned is affected, too, for the server.
        *rows += done.rows.max(done.affected);
        match lines.iter().position(|(at, _)| *at == done.at) {
            Some(line) => lines[line].1 += 1,
            None if lines.len() < LINES => lines.push((done.at, 1)),
            None => {}
        }
    }
}
