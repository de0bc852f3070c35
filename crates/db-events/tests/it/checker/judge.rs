//! Compares the stored events with the notes of all writers and watchers.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use db_testkit::TestDb;

/// The kind of an event: the same for all events in some batches, different in others.
pub(super) fn kind(key: &str, number: usize) -> &'static str {
    if key.len().is_multiple_of(2) { "n" } else { ["a", "b", "c"][number % 3] }
}

/// The digest of a log up to an event, from the digest before it.
pub(super) fn digest(before: u64, id: i64, kind: &str, data: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (before, id, kind, data).hash(&mut hasher);
    hasher.finish()
}

/// A batch that a task tried to append.
#[derive(Debug, Default)]
struct Batch {
    log: i64,
    count: usize,
    tries: usize,
    /// The event after which it must be stored: the last one that its process knew to be stored.
    after: i64,
    /// The id of its first event, if its append returned one.
    first: Option<i64>,
    /// Acknowledged without ids.
    stored: bool,
    /// Refused.
    refused: bool,
    /// Sent again until it is stored.
    once: bool,
}

/// The notes of the processes.
#[derive(Default)]
pub(super) struct Judge {
    batches: HashMap<String, Batch>,
    /// For each log, the last event seen and its digest.
    seen: Vec<(i64, usize, u64)>,
    /// The content of brief logs at their ends.
    pub(super) brief: HashMap<i64, Vec<String>>,
    /// For watchers that saw the end of a brief log: the log, the first event, and the digest.
    ended: Vec<(i64, i64, u64)>,
    pub(super) counts: BTreeMap<String, u64>,
}

impl Judge {
    /// Adds the notes of one process, in their order.
    pub(super) fn hear(&mut self, process: &mut Memory, notes: &[String]) {
        for note in notes {
            let words: Vec<&str> = note.split(' ').collect();
            match words[..] {
                ["try", log, key, count] => {
                    let log = log.parse().expect("a log");
                    let after = process.stored.get(&log).copied().unwrap_or(0);
                    let batch = self.batches.entry(key.to_owned()).or_insert_with(|| Batch {
                        log,
                        count: count.parse().expect("a count"),
                        after,
                        once: key.contains("/once/"),
                        ..Batch::default()
                    });
                    batch.tries += 1;
                    if let Some((_, sequence)) = key.split_once("/once/") {
                        let (log, sequence) = sequence.split_once('/').expect("a log and a number");
                        let number: i64 = sequence.parse().expect("a number");
                        process.once.insert(log.parse().expect("a log"), number);
                    }
                }
                ["ack", key, first] => {
                    let first: i64 = first.parse().expect("an id");
                    let batch = self.batches.get_mut(key).expect("a batch that was tried");
                    assert!(
                        batch.first.is_none_or(|before| before == first),
                        "{key} was told to be at {first} and at {:?}",
                        batch.first
                    );
                    batch.first = Some(first);
                    let last = first + i64::try_from(batch.count).expect("few") - 1;
                    let stored = process.stored.entry(batch.log).or_default();
                    *stored = last.max(*stored);
                }
                ["stored", key] => self.batches.get_mut(key).expect("a batch that was tried").stored = true,
                ["no", key] => self.batches.get_mut(key).expect("a batch that was tried").refused = true,
                ["saw", log, count, digest] => self.seen.push((
                    log.parse().expect("a log"),
                    count.parse().expect("a count"),
                    digest.parse().expect("a digest"),
                )),
                ["ended", log, from, digest] => self.ended.push((
                    log.parse().expect("a log"),
                    from.parse().expect("an id"),
                    digest.parse().expect("a digest"),
                )),
                ["count", name, number] => {
                    *self.counts.entry(name.to_owned()).or_default() +=
                        number.parse::<u64>().expect("a number");
                }
                _ => panic!("{note}"),
            }
        }
    }

    /// Compares the notes with the stored rows, which are read without the tested code.
    pub(super) async fn compare(&mut self, db: &TestDb) {
        let rows: Vec<(i64, i64, String, String)> = sqlx::query_as(
            "select log, id, type, data from event_log_events join kept using (log) order by log, id",
        )
        .fetch_all(&db.pool())
        .await
        .expect("what is stored");
        // For each batch, the stored places of its first event.
        let mut places: HashMap<&str, Vec<(i64, i64)>> = HashMap::new();
        let mut digests: HashMap<i64, Vec<u64>> = HashMap::new();
        let mut open: Option<(&str, usize, usize)> = None;
        for (log, id, stored_kind, data) in &rows {
            let digests = digests.entry(*log).or_insert_with(|| vec![0]);
            assert_eq!(usize::try_from(*id).expect("an id"), digests.len(), "a hole in log {log}");
            digests.push(digest(digests[digests.len() - 1], *id, stored_kind, data));
            let (key, number) = data.rsplit_once('.').expect("a batch and a number");
            let number: usize = number.parse().expect("a number");
            let Some(batch) = self.batches.get(key) else { panic!("no task has appended {data}") };
            assert_eq!((batch.log, stored_kind.as_str()), (*log, kind(key, number)), "{data}");
            if let Some((whose, next, _)) = open {
                assert_eq!((key, number), (whose, next), "a batch is not whole");
            } else {
                assert_eq!(number, 0, "{data} is not the beginning of its batch");
                places.entry(key).or_default().push((*log, *id));
            }
            open = (number + 1 < batch.count).then_some((key, number + 1, batch.count));
        }
        assert_eq!(open, None, "the last batch is not whole");

        let mut outcomes: BTreeMap<&str, u64> = BTreeMap::new();
        for (key, batch) in &self.batches {
            let places = places.get(key.as_str()).map_or(&[][..], Vec::as_slice);
            let outcome = match (batch.first, places) {
                (Some(first), [(_, at)]) if first == *at => "acknowledged",
                (None, [_]) if batch.stored => "flushed",
                (None, []) if batch.refused => "refused",
                (None, []) if !batch.stored && !batch.once => "unknown-not-stored",
                (None, [_]) if !batch.refused && !batch.once => "unknown-stored",
                _ => panic!("{key} is stored at {places:?}, and was {batch:?}"),
            };
            for (_, at) in places {
                assert!(*at > batch.after, "{key} is at {at}, before what was there already: {batch:?}");
            }
            *outcomes.entry(outcome).or_default() += 1;
        }
        for (log, count, digest) in &self.seen {
            let is_same = digests.get(log).and_then(|digests| digests.get(*count)) == Some(digest);
            assert!(is_same || *count == 0, "a watcher has seen other events in log {log} up to {count}");
        }
        for (log, from, seen) in &self.ended {
            let held = (1..).zip(&self.brief[log]).skip_while(|(id, _)| id < from);
            let all = held.fold(0, |before, (id, data)| digest(before, id, "n", data));
            assert_eq!(all, *seen, "a watcher has seen other events in brief log {log} from {from} on");
        }
        self.counts.insert("events".to_owned(), rows.len() as u64);
        self.counts.insert("batches".to_owned(), self.batches.len() as u64);
        self.counts.insert("digests".to_owned(), self.seen.len() as u64);
        let again = self.batches.values().map(|batch| batch.tries as u64 - 1).sum();
        self.counts.insert("sent-again".to_owned(), again);
        for (outcome, count) in outcomes {
            self.counts.insert(outcome.to_owned(), count);
        }
    }
}

/// The notes of a slot: its process and those before it.
#[derive(Default)]
pub(super) struct Memory {
    /// The last acknowledged event of each log.
    stored: HashMap<i64, i64>,
    /// The number of the last batch that was begun for each log by `append_once`.
    pub(super) once: BTreeMap<i64, i64>,
}
