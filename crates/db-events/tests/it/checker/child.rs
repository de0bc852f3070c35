//! One of the processes: it writes to all logs, and watches all of them, in every way that the crate offers.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use db_core::{Class, Config, Pool, PoolOptions};
use db_events::{Appender, Error, Event, EventLogs, LogId, LogTopics, NewEvent, Selection, Writer, WriterId};
use db_notify::{Bus, BusOptions, Topic, WatchOptions};
use futures_util::FutureExt;
use harness::{answer, note};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::brief::{self, HABITS, Habit, Told};
use super::judge::{digest, kind};

/// Limit for every wait of such a process.
const PATIENCE: Duration = Duration::from_mins(1);

/// A stream that is this many batches behind was overtaken: the reader keeps 16 pages.
const FAR_BEHIND: u64 = 20;

/// More notifications than the queue of a bus.
const FLOOD: usize = 4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Writing,
    /// Set while no task writes and no watcher leaves: a watcher that is behind now must not stay behind.
    Resting,
    Ending,
}

/// The behaviour of a watching task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Reads from the beginning to the end.
    Live,
    /// Repeatedly waits until it has been overtaken.
    Slow,
    /// Drops its stream at any moment, and resumes with its cursor.
    Cut,
    /// Repeatedly starts at any event.
    Late,
}

const WAYS: [Way; 5] = [Way::Live, Way::Live, Way::Slow, Way::Cut, Way::Late];

/// A way of writing, with its state.
enum Hand {
    Plain,
    Once {
        writer: WriterId,
        sequence: i64,
    },
    /// The only writer of its log.
    Only(Option<Writer>),
    Gathering(Appender),
}

impl Hand {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Once { .. } => "once",
            Self::Only(_) => "only",
            Self::Gathering(_) => "gathering",
        }
    }
}

/// The state of a log in this process.
struct Seen {
    log: LogId,
    /// The digest after each event, in order. The first watcher that sees an event adds it; the others compare.
    digests: Mutex<Vec<u64>>,
    /// How many batches a live watcher has received.
    batches: AtomicU64,
    /// The positions of its watchers.
    places: Mutex<Vec<(Way, Arc<AtomicI64>)>>,
}

impl Seen {
    fn new(log: LogId) -> Self {
        let digests = Mutex::new(vec![0]);
        Self { log, digests, batches: AtomicU64::new(0), places: Mutex::default() }
    }

    /// The last event that any watcher has seen.
    fn last(&self) -> i64 {
        i64::try_from(self.digests.lock().expect("no panic").len()).expect("few") - 1
    }

    /// Records that these events were seen after that one.
    fn take(&self, way: Way, after: i64, events: &[Event]) -> i64 {
        let mut digests = self.digests.lock().expect("no panic");
        let mut last = after;
        assert!(!events.is_empty(), "{way:?} watcher of log {}: nothing after {last}", self.log);
        for event in events {
            assert_eq!(event.id, last + 1, "{way:?} watcher of log {}: a hole or a double", self.log);
            let before = usize::try_from(last).expect("an id");
            let now = digest(digests[before], event.id, &event.kind, &event.data);
            match digests.get(before + 1) {
                Some(known) => assert_eq!(now, *known, "two have seen {} differently: {event:?}", self.log),
                None => digests.push(now),
            }
            last = event.id;
        }
        last
    }

    /// Notes what was seen until now.
    fn note(&self) {
        let digests = self.digests.lock().expect("no panic");
        let count = digests.len() - 1;
        note(&format!("saw {} {count} {}", self.log, digests[count]));
    }

    /// The position of a watcher, and whether its batches are counted.
    fn place(&self, way: Way) -> (Arc<AtomicI64>, bool) {
        let place = Arc::new(AtomicI64::new(0));
        let mut places = self.places.lock().expect("no panic");
        let counts = way == Way::Live && places.iter().all(|(way, _)| *way != Way::Live);
        places.push((way, Arc::clone(&place)));
        (place, counts)
    }

    fn places(&self) -> Vec<(Way, i64)> {
        let places = self.places.lock().expect("no panic");
        places.iter().map(|(way, place)| (*way, place.load(Ordering::Relaxed))).collect()
    }
}

/// Counters for the report.
#[derive(Default)]
struct Counts {
    cut: AtomicU64,
    resumed: AtomicU64,
    late: AtomicU64,
    overtaken: AtomicU64,
    dropped_appends: AtomicU64,
}

/// One of the processes.
pub(super) struct Child {
    events: EventLogs,
    bus: Bus,
    /// The process's slot, and the number of earlier processes in it.
    name: String,
    slot: i64,
    seen: HashMap<LogId, Arc<Seen>>,
    phase: watch::Sender<Phase>,
    /// The number of steps of each writing task.
    steps: Vec<AtomicU64>,
    resting: AtomicUsize,
    counts: Counts,
    /// The positions of the steady watchers of brief logs.
    brief: Mutex<HashMap<LogId, Arc<AtomicI64>>>,
    told: Arc<Told>,
}

impl Child {
    /// Carries out orders. The first order is `begin`, with the slot and generation, the logs to which all write, those of each
    /// slot, and the number of the last batch that was begun for each log by `append_once`.
    pub(super) async fn run(address: &str, mut orders: tokio::sync::mpsc::UnboundedReceiver<String>) {
        let begin = orders.recv().await.expect("an order");
        let words: Vec<&str> = begin.split(' ').collect();
        let ["begin", slot, generation, shared, own, once] = words[..] else { panic!("{begin}") };
        let (shared, owned) = (logs(shared), logs(own));
        let once: HashMap<LogId, i64> = pairs(once).into_iter().collect();
        let slot: i64 = slot.parse().expect("a slot");
        let own = owned[usize::try_from(slot).expect("a slot")];

        let config = Config::from_url(address).expect("an address");
        let options = BusOptions::default()
            .heartbeat(Duration::from_millis(200))
            .answer(Duration::from_millis(500))
            .queue(1000);
        let bus = Bus::open(&config, options).await.expect("a bus");
        let pool = Pool::new(&config, PoolOptions::backend().max(20));
        let topics =
            LogTopics::default().options(WatchOptions::default().renewal(Duration::from_millis(500)));
        let events = EventLogs::with_topics(pool, &bus, &topics);

        let mut hands: Vec<(LogId, Hand)> = vec![(own, Hand::Only(None))];
        for log in &shared {
            // A batch that the previous process had begun is sent again.
            let sequence = once.get(log).copied().unwrap_or(1);
            let writer = WriterId(slot * 1000 + log.0);
            hands.push((*log, Hand::Once { writer, sequence }));
            hands.push((*log, Hand::Plain));
            hands.push((*log, Hand::Gathering(events.appender(*log))));
        }
        let all = shared.into_iter().chain(owned);
        let seen: HashMap<_, _> = all.map(|log| (log, Arc::new(Seen::new(log)))).collect();
        let child = Arc::new(Self {
            events,
            bus,
            name: format!("s{slot}/g{generation}"),
            slot,
            seen,
            phase: watch::channel(Phase::Writing).0,
            steps: hands.iter().map(|_| AtomicU64::new(0)).collect(),
            resting: AtomicUsize::new(0),
            counts: Counts::default(),
            brief: Mutex::default(),
            told: Arc::default(),
        });
        let mut watching = JoinSet::new();
        for seen in child.seen.values() {
            for way in WAYS {
                watching.spawn(Arc::clone(&child).watch(way, Arc::clone(seen)));
            }
        }
        let mut writing = JoinSet::new();
        for (number, (log, hand)) in hands.into_iter().enumerate() {
            writing.spawn(Arc::clone(&child).write(number, log, hand));
        }
        answer("begun");
        while let Some(order) = orders.recv().await {
            child.obey(&order, &mut writing, &mut watching).await;
            for tasks in [&mut writing, &mut watching] {
                while let Some(ended) = tasks.try_join_next() {
                    ended.expect("who writes or watches has met something wrong");
                }
            }
        }
    }

    async fn obey(&self, order: &str, writing: &mut JoinSet<()>, watching: &mut JoinSet<()>) {
        match order.split_once(' ').unwrap_or((order, "")) {
            ("progress", grow) => {
                let steps: Vec<u64> = self.done();
                let grow = logs(grow).into_iter().map(|log| &self.seen[&log]);
                let live: Vec<(u64, &Arc<Seen>)> =
                    grow.map(|seen| (seen.batches.load(Ordering::Relaxed), seen)).collect();
                self.until("each who writes has stored, and each log was seen to grow", || {
                    let written = self.done().iter().zip(&steps).all(|(now, before)| *now >= before + 2);
                    written
                        && live.iter().all(|(before, seen)| seen.batches.load(Ordering::Relaxed) > *before)
                })
                .await;
                answer("progress");
            }
            ("pause", "") => {
                self.phase.send_replace(Phase::Resting);
                self.until("all who write rest", || self.resting.load(Ordering::SeqCst) == writing.len())
                    .await;
                answer("paused");
            }
            ("reach", heads) => {
                self.until("all who watch have seen all that is stored", || {
                    pairs(heads)
                        .iter()
                        .all(|(log, head)| self.seen[log].places().iter().all(|(_, place)| place >= head))
                })
                .await;
                for seen in self.seen.values() {
                    seen.note();
                }
                answer("reached");
            }
            ("go", "") => {
                self.phase.send_replace(Phase::Writing);
                answer("going");
            }
            ("brief", log) => {
                self.watch_brief(LogId(log.parse().expect("a log")), watching);
                answer("watching");
            }
            ("brief-reach", heads) => {
                self.until("the steady watchers of a brief log have seen all of it", || {
                    let places = self.brief.lock().expect("no panic");
                    pairs(heads).iter().all(|(log, head)| {
                        places.get(log).is_none_or(|place| place.load(Ordering::Relaxed) >= *head)
                    })
                })
                .await;
                answer("reached");
            }
            ("lost", "") => {
                self.until("the link is known to be lost", || !self.bus.state().is_connected()).await;
                answer("lost");
            }
            ("flood", "") => {
                let before = self.bus.state().coalesced;
                for number in 0..FLOOD {
                    let topic = Topic::new(format!("flood/{number}")).expect("a topic");
                    self.bus.notify_soon(&topic).expect("an open bus");
                }
                answer(&(self.bus.state().coalesced - before).to_string());
            }
            ("end", "") => {
                self.phase.send_replace(Phase::Ending);
                let ended = timeout(PATIENCE, async {
                    while let Some(ended) = writing.join_next().await {
                        ended.expect("who writes has met something wrong");
                    }
                });
                ended.await.expect("all who write have ended in time");
                answer("ended");
            }
            ("drain", "") => {
                let ended = timeout(PATIENCE, async {
                    while let Some(ended) = watching.join_next().await {
                        ended.expect("who watches has met something wrong");
                    }
                });
                assert!(ended.await.is_ok(), "somebody still watches: {}", self.describe());
                self.report().await;
                answer("drained");
            }
            _ => panic!("{order}"),
        }
    }

    fn watch_brief(&self, log: LogId, watching: &mut JoinSet<()>) {
        for habit in HABITS {
            let place = Arc::<AtomicI64>::default();
            if habit == Habit::Stays {
                self.brief.lock().expect("no panic").insert(log, Arc::clone(&place));
            }
            watching.spawn(brief::watch(self.events.clone(), log, habit, place, Arc::clone(&self.told)));
        }
    }

    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let waited = timeout(PATIENCE, async {
            while !holds() {
                sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(waited.await.is_ok(), "{}: not in time: {what}; {}", self.name, self.describe());
    }

    fn describe(&self) -> String {
        let mut text = format!("{:?}, steps {:?}", self.events.state(), self.done());
        for seen in self.seen.values() {
            // Writing to a string does not fail.
            let _ = write!(text, "; log {} up to {}: {:?}", seen.log, seen.last(), seen.places());
        }
        text
    }

    fn done(&self) -> Vec<u64> {
        self.steps.iter().map(|steps| steps.load(Ordering::Relaxed)).collect()
    }

    /// Prints what it has seen and counted, and then reads all logs again.
    async fn report(&self) {
        for seen in self.seen.values() {
            let history = self.events.history(seen.log, Selection::default()).collect();
            let all = timeout(PATIENCE, history).await.expect("in time").expect("a history");
            assert_eq!(seen.take(Way::Late, 0, &all), seen.last(), "a history ends elsewhere");
            seen.note();
        }
        let Counts { cut, resumed, late, overtaken, dropped_appends } = &self.counts;
        for (name, count) in [
            ("cancelled-looks", cut),
            ("resumed", resumed),
            ("came-late", late),
            ("overtaken", overtaken),
            ("cancelled-appends", dropped_appends),
            ("told-rewound", &self.told.rewound),
            ("told-trimmed", &self.told.trimmed),
            ("told-removed", &self.told.removed),
            ("told-finished", &self.told.finished),
        ] {
            note(&format!("count {name} {}", count.load(Ordering::Relaxed)));
        }
    }

    /// Writes until the end.
    async fn write(self: Arc<Self>, number: usize, log: LogId, mut hand: Hand) {
        let mut phase = self.phase.subscribe();
        for step in 0.. {
            let now = *phase.borrow_and_update();
            match now {
                Phase::Writing => {}
                Phase::Resting => {
                    self.resting.fetch_add(1, Ordering::SeqCst);
                    phase.changed().await.expect("the process goes on");
                    self.resting.fetch_sub(1, Ordering::SeqCst);
                    continue;
                }
                Phase::Ending => break,
            }
            let key = format!("{}/{}/{number}/{step}", self.name, hand.name());
            self.step(&mut hand, log, &key).await;
            self.steps[number].fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(fastrand::u64(2..25))).await;
        }
        if let Hand::Only(writer) = hand {
            let key = format!("{}/only/end", self.name);
            let batch = new_batch(log, &key, 1);
            let mut writer = match writer {
                Some(writer) => writer,
                None => self.events.writer(log, self.head(log).await),
            };
            // A killed process's append may arrive as late as this; this process is not killed.
            let last = writer.last();
            writer.append(&batch).await.expect("the only writer");
            note(&format!("ack {key} {}", last + 1));
            let key = format!("{}/only/final", self.name);
            let batch = new_batch(log, &key, 1);
            writer.finish(&batch).await.expect("the only writer");
            note(&format!("ack {key} {}", last + 2));
        }
    }

    async fn step(&self, hand: &mut Hand, log: LogId, key: &str) {
        match hand {
            Hand::Plain => self.plain(log, key).await,
            Hand::Once { writer, sequence } => {
                self.once(log, (*writer, *sequence)).await;
                *sequence += 1;
            }
            Hand::Only(writer) => self.only(writer, log, key).await,
            Hand::Gathering(appender) => self.gathering(appender, log, key).await,
        }
    }

    async fn plain(&self, log: LogId, key: &str) {
        let batch = new_batch(log, key, fastrand::usize(1..5));
        match self.perhaps_cut(self.events.append(log, &batch)).await {
            None => {}
            Some(Ok(ids)) => {
                assert_eq!(ids.clone().count(), batch.len());
                note(&format!("ack {key} {}", ids.start()));
            }
            Some(Err(error)) if is_open(&error) => {}
            Some(Err(error)) => {
                assert!(error.is_transient(), "{error:?}");
                note(&format!("no {key}"));
            }
        }
    }

    /// Sends the same batch until it is known to be stored, and sometimes once more.
    async fn once(&self, log: LogId, source: (WriterId, i64)) {
        let key = format!("s{}/once/{log}/{}", self.slot, source.1);
        let count = usize::try_from(source.1 % 4).expect("a number") + 1;
        let mut is_stored = false;
        loop {
            let batch = new_batch(log, &key, count);
            match self.perhaps_cut(self.events.append_once(log, source, &batch)).await {
                Some(Ok(ids)) => {
                    note(&format!("ack {key} {}", ids.start()));
                    if is_stored || fastrand::u8(..10) > 0 {
                        return;
                    }
                    is_stored = true;
                }
                None => {}
                Some(Err(error)) => {
                    assert!(error.is_transient(), "{error:?}");
                    sleep(Duration::from_millis(fastrand::u64(5..50))).await;
                }
            }
        }
    }

    async fn only(&self, kept: &mut Option<Writer>, log: LogId, key: &str) {
        let mut writer = match kept.take() {
            Some(writer) => writer,
            None => self.events.writer(log, self.head(log).await),
        };
        let last = writer.last();
        let batch = new_batch(log, key, fastrand::usize(1..5));
        match self.perhaps_cut(writer.append(&batch)).await {
            // A writer is dropped together with its future.
            None => return,
            Some(Ok(())) => note(&format!("ack {key} {}", last + 1)),
            // An earlier batch was stored after this writer had read the end of the log.
            Some(Err(Error::Conflict { .. })) => {
                note(&format!("no {key}"));
                return;
            }
            Some(Err(error)) => panic!("{error:?}"),
        }
        *kept = Some(writer);
    }

    async fn gathering(&self, appender: &Appender, log: LogId, key: &str) {
        let numbers = 0..fastrand::usize(1..6);
        if fastrand::bool() {
            for number in numbers {
                let key = format!("{key}/{number}");
                let event = new_batch(log, &key, 1).remove(0);
                match self.perhaps_cut(appender.append(event)).await {
                    None => {}
                    Some(Ok(id)) => note(&format!("ack {key} {id}")),
                    Some(Err(error)) => panic!("{error:?}"),
                }
            }
            return;
        }
        let mut keys = Vec::new();
        for number in numbers {
            let key = format!("{key}/{number}");
            let event = new_batch(log, &key, 1).remove(0);
            appender.push(event).await.expect("handed over");
            keys.push(key);
        }
        let last = appender.flush().await.expect("stored");
        // No other task uses this appender.
        let last_key = keys.pop().expect("at least one");
        note(&format!("ack {last_key} {last}"));
        for key in keys {
            note(&format!("stored {key}"));
        }
    }

    /// Some of its futures are dropped midway.
    async fn perhaps_cut<T>(&self, append: impl Future<Output = T>) -> Option<T> {
        if fastrand::u8(..12) > 0 || *self.phase.borrow() == Phase::Ending {
            return Some(append.await);
        }
        let done = timeout(Duration::from_micros(fastrand::u64(0..3000)), append).await.ok();
        self.counts.dropped_appends.fetch_add(u64::from(done.is_none()), Ordering::Relaxed);
        done
    }

    async fn head(&self, log: LogId) -> i64 {
        loop {
            match self.events.head(log).await {
                Ok(head) => return head.last,
                Err(error) => assert!(error.is_transient(), "{error:?}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Watches until the log ends.
    async fn watch(self: Arc<Self>, way: Way, seen: Arc<Seen>) {
        let (place, counts) = seen.place(way);
        let mut phase = self.phase.subscribe();
        let mut stream = self.events.stream(seen.log, 0);
        let mut cursor = 0;
        loop {
            let now = *phase.borrow_and_update();
            if now == Phase::Writing {
                match way {
                    Way::Slow => {
                        let far = seen.batches.load(Ordering::Relaxed) + FAR_BEHIND;
                        while seen.batches.load(Ordering::Relaxed) < far
                            && !phase.has_changed().unwrap_or(true)
                        {
                            sleep(Duration::from_millis(10)).await;
                        }
                        let is_far = seen.batches.load(Ordering::Relaxed) >= far;
                        self.counts.overtaken.fetch_add(is_far.into(), Ordering::Relaxed);
                    }
                    Way::Cut if fastrand::u8(..8) == 0 => {
                        stream = self.events.stream(seen.log, cursor);
                        self.counts.resumed.fetch_add(1, Ordering::Relaxed);
                    }
                    Way::Late if fastrand::u8(..8) == 0 => {
                        cursor = fastrand::i64(0..=seen.last());
                        stream = self.events.stream(seen.log, cursor);
                        self.counts.late.fetch_add(1, Ordering::Relaxed);
                    }
                    Way::Live | Way::Cut | Way::Late => {}
                }
            }
            place.store(cursor, Ordering::Relaxed);
            let cut = match way {
                Way::Cut if now == Phase::Writing => Duration::from_micros(fastrand::u64(0..4000)),
                _ => PATIENCE * 2,
            };
            let next = if cut.is_zero() {
                stream.next_batch().now_or_never()
            } else {
                tokio::select! {
                    next = timeout(cut, stream.next_batch()) => next.ok(),
                    _ = phase.changed() => None,
                }
            };
            match next {
                None => _ = self.counts.cut.fetch_add(1, Ordering::Relaxed),
                Some(Ok(Some(events))) => {
                    cursor = seen.take(way, cursor, &events);
                    seen.batches.fetch_add(counts.into(), Ordering::Relaxed);
                }
                Some(Ok(None)) => {
                    assert_eq!(*self.phase.borrow(), Phase::Ending, "log {} has not ended", seen.log);
                    return;
                }
                Some(Err(error)) => panic!("{way:?} watcher of log {}: {error:?}", seen.log),
            }
            assert_eq!(stream.cursor(), cursor, "{way:?} watcher of log {}", seen.log);
            place.store(cursor, Ordering::Relaxed);
        }
    }
}

/// Whether the error leaves it open if the append is stored.
fn is_open(error: &Error) -> bool {
    match error {
        Error::TimedOut { .. } => true,
        Error::Database { cause, .. } => matches!(cause.class(), Class::Lost | Class::TimedOut),
        _ => false,
    }
}

/// A batch of numbered events, noted before it is appended.
fn new_batch(log: LogId, key: &str, count: usize) -> Vec<NewEvent> {
    note(&format!("try {log} {key} {count}"));
    (0..count).map(|number| NewEvent::new(kind(key, number), format!("{key}.{number}"))).collect()
}

fn logs(text: &str) -> Vec<LogId> {
    text.split(',').map(|log| LogId(log.parse().expect("a log"))).collect()
}

/// Parses `log:number,…`, or `-` for nothing.
fn pairs(text: &str) -> Vec<(LogId, i64)> {
    let pair = |pair: &str| {
        let (log, number) = pair.split_once(':').expect("two");
        (LogId(log.parse().expect("a log")), number.parse().expect("a number"))
    };
    text.split(',').filter(|text| *text != "-").map(pair).collect()
}
