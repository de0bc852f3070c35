//! Random buses, subscriptions and faults, checked against the promise of the crate's documentation: a subscription that
//! follows a topic receives each of its notifications once and in the order of the sending process, or a gap in its place or
//! later, and receives nothing else.
//!
//! The subscriptions in force when a notification is sent and when it is routed may differ, and so may the sessions that carry
//! it. So the time is divided into epochs. At the end of each epoch, every bus has routed, or is known to have lost, all that
//! was sent. A subscription must receive what it followed from before the call to the end of the call's epoch, and may receive
//! what it followed at some time in between. A statement may run twice only in an epoch with a fault. Equal notifications are
//! certain to be sent as one only if the tasks of the buses did not run between the calls; such a period is called a breath.

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use db_notify::{Bus, BusOptions, Delivery, Gap, GapReason, MemoryLink, NotifyError, Subscription, Topic};
use db_testkit::TestDb;
use futures_util::FutureExt;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use proptest::{prop_assert, prop_assert_eq};
use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::support::{PATIENCE, Place, Server, topic};

const CHANNEL: &str = "db_notify.default";

/// The size of the outbox.
const QUEUE: usize = 1000;

/// Time after which no further case begins on PostgreSQL.
const ENOUGH: Duration = Duration::from_secs(8);

const TOPICS: [&str; 3] = ["a", "b", "c"];

/// A topic that every bus follows, which shows the end of an epoch.
const MARKER: &str = "end of the epoch";

#[test]
fn in_memory_all_that_was_sent_is_delivered_or_covered_by_a_gap() {
    check(400, 60, |case| {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let memory = MemoryLink::new();
            let options = options().heartbeat(Duration::from_secs(1));
            run(&memory, &options, case).await?;
            prop_assert_eq!(memory.sessions(), 0);
            Ok(())
        })
    });
}

#[test]
fn on_postgresql_all_that_was_sent_is_delivered_or_covered_by_a_gap() {
    // On one thread, so that nothing is routed while a test reads.
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let server = Server::of(runtime.block_on(TestDb::empty()).expect("a database"));
    let begun = Instant::now();
    check(12, 30, |case| {
        // A slow machine runs fewer cases.
        if begun.elapsed() > ENOUGH {
            return Ok(());
        }
        runtime.block_on(async {
            let (heartbeat, answer) = (Duration::from_millis(100), Duration::from_secs(1));
            run(&server, &options().heartbeat(heartbeat).answer(answer), case).await?;
            server.until_sessions(0).await;
            Ok(())
        })
    });
    // The pool belongs to this runtime.
    let _guard = runtime.enter();
    drop(server);
}

fn options() -> BusOptions {
    BusOptions::default().queue(QUEUE)
}

fn check(cases: u32, longest: usize, mut test: impl FnMut(&Case) -> Result<(), TestCaseError>) {
    let test = std::cell::RefCell::new(&mut test);
    let config = Config { cases, failure_persistence: None, max_shrink_time: 60_000, ..Config::default() };
    let outcome = TestRunner::new(config).run(&cases_of(longest), |case| (test.borrow_mut())(&case));
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, case)) => panic!("{why}\nin {case:#?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
}

#[derive(Debug, Clone)]
struct Case {
    buses: usize,
    steps: Vec<Step>,
}

/// Numbers of buses and subscriptions are taken modulo how many there are.
#[derive(Debug, Clone)]
enum Step {
    Subscribe {
        bus: usize,
        size: usize,
        topics: Vec<usize>,
    },
    Follow {
        subscription: usize,
        topic: usize,
    },
    Unfollow {
        subscription: usize,
        topic: usize,
    },
    Drop {
        subscription: usize,
    },
    Read {
        subscription: usize,
        most: usize,
    },
    Notify {
        bus: usize,
        topic: usize,
    },
    NotifySoon {
        bus: usize,
        topic: usize,
        bytes: usize,
    },
    /// A payload that is also used by others.
    NotifyEqual {
        bus: usize,
        topic: usize,
    },
    /// More notifications than the outbox holds.
    Burst {
        bus: usize,
        topic: usize,
    },
    /// Lets the tasks of the buses run for a moment.
    Yield {
        times: usize,
    },
    EndEpoch,
    Cut,
    CutBeforeNotify,
    CutAnswer,
    BlackHole,
    Stop,
    Start,
}

fn cases_of(longest: usize) -> impl Strategy<Value = Case> {
    let calm = vec(prop_oneof![20 => calm(), 1 => Just(Step::EndEpoch)], 1..longest);
    let fault = prop_oneof![
        Just(Step::Cut),
        Just(Step::CutBeforeNotify),
        Just(Step::CutAnswer),
        Just(Step::BlackHole),
        Just(Step::Stop),
        Just(Step::Start)
    ];
    let burst = (any::<usize>(), topics()).prop_map(|(bus, topic)| Step::Burst { bus, topic });
    let stormy = vec(prop_oneof![40 => calm_or_end(), 5 => fault, 1 => burst], 1..longest);
    (1..=3_usize, vec(subscribe(), 1..4), prop_oneof![calm, stormy]).prop_map(|(buses, mut steps, more)| {
        steps.extend(more);
        Case { buses, steps }
    })
}

fn calm_or_end() -> impl Strategy<Value = Step> {
    prop_oneof![20 => calm(), 1 => Just(Step::EndEpoch)]
}

fn topics() -> impl Strategy<Value = usize> {
    0..TOPICS.len()
}

fn subscribe() -> impl Strategy<Value = Step> {
    let size = prop_oneof![Just(0_usize), Just(1), Just(2), Just(5), Just(10_000)];
    (any::<usize>(), size, vec(topics(), 1..=TOPICS.len())).prop_map(|(bus, size, topics)| Step::Subscribe {
        bus,
        size,
        topics,
    })
}

fn calm() -> impl Strategy<Value = Step> {
    let which = any::<usize>;
    prop_oneof![
        2 => subscribe(),
        2 => (which(), topics()).prop_map(|(subscription, topic)| Step::Follow { subscription, topic }),
        2 => (which(), topics()).prop_map(|(subscription, topic)| Step::Unfollow { subscription, topic }),
        1 => which().prop_map(|subscription| Step::Drop { subscription }),
        4 => (which(), 1..4_usize).prop_map(|(subscription, most)| Step::Read { subscription, most }),
        3 => which().prop_map(|subscription| Step::Read { subscription, most: usize::MAX }),
        5 => (which(), topics()).prop_map(|(bus, topic)| Step::Notify { bus, topic }),
        8 => (which(), topics(), prop_oneof![2 => Just(0_usize), 1 => Just(3000)])
            .prop_map(|(bus, topic, bytes)| Step::NotifySoon { bus, topic, bytes }),
        4 => (which(), topics()).prop_map(|(bus, topic)| Step::NotifyEqual { bus, topic }),
        4 => (1..6_usize).prop_map(|times| Step::Yield { times }),
    ]
}

async fn run<P: Place>(place: &P, options: &BusOptions, case: &Case) -> Result<(), TestCaseError> {
    let mut world = World::open(place, options, case.buses).await;
    for step in &case.steps {
        world.now += 1;
        world.take(step).await?;
    }
    world.now += 1;
    world.end_epoch().await?;
    world.now += 1;
    for reader in &mut world.readers {
        reader.read(world.now, usize::MAX)?;
    }
    world.judge()?;
    for bus in &world.buses {
        prop_assert!(bus.close(PATIENCE).await, "a bus did not close");
    }
    Ok(())
}

/// The number of a step.
type At = usize;

type Call = Pin<Box<dyn Future<Output = Result<(), NotifyError>>>>;

struct World<'p, P> {
    place: &'p P,
    buses: Vec<Bus>,
    markers: Vec<Subscription>,
    readers: Vec<Reader>,
    /// For each bus, its notifications in the order of the calls.
    sent: Vec<Vec<Sent>>,
    /// How many calls each bus has had.
    calls: Vec<u64>,
    /// Calls that wait for the server to be back.
    waiting: Vec<Call>,
    now: At,
    /// How often the tasks of the buses may have run.
    breath: usize,
    is_away: bool,
    /// The end of each epoch, and the number of faults in it.
    epochs: Vec<(At, usize)>,
    faults: usize,
    markers_sent: usize,
}

struct Sent {
    topic: usize,
    payload: String,
    is_equal: bool,
    at: At,
    epoch: usize,
    breath: usize,
}

#[derive(Clone, Copy)]
enum Payload {
    /// A payload that is used once.
    Own { bytes: usize },
    /// The payload that these calls of the bus share.
    Equal,
}

/// A subscription, the topics that it followed, and its deliveries.
struct Reader {
    bus: usize,
    size: usize,
    /// `None` once it is dropped.
    subscription: Option<Subscription>,
    follows: Vec<Follow>,
    log: Vec<(At, Delivery)>,
}

struct Follow {
    topic: usize,
    from: At,
    until: Option<At>,
}

impl Reader {
    /// Reads the deliveries that are there, while no task can add one.
    fn read(&mut self, now: At, most: usize) -> Result<(), TestCaseError> {
        let Some(subscription) = &mut self.subscription else { return Ok(()) };
        let ready = std::iter::from_fn(|| subscription.recv().now_or_never().flatten());
        let taken: Vec<Delivery> = ready.take(most).collect();
        let gaps = taken.iter().filter(|delivery| matches!(delivery, Delivery::Gap(_))).count();
        prop_assert!(gaps <= 1, "{gaps} gaps waited: {taken:?}");
        let held = taken.len() - gaps;
        prop_assert!(
            held <= self.size.max(1),
            "{held} notifications waited where there is room for {}",
            self.size
        );
        self.log.extend(taken.into_iter().map(|delivery| (now, delivery)));
        Ok(())
    }

    fn leave(&mut self, now: At, topic: usize) {
        for follow in self.follows.iter_mut().filter(|follow| follow.topic == topic) {
            follow.until.get_or_insert(now);
        }
    }
}

impl<'p, P: Place> World<'p, P> {
    async fn open(place: &'p P, options: &BusOptions, buses: usize) -> Self {
        let mut world = Self {
            place,
            buses: Vec::new(),
            markers: Vec::new(),
            readers: Vec::new(),
            sent: Vec::new(),
            calls: vec![0; buses],
            waiting: Vec::new(),
            now: 0,
            breath: 0,
            is_away: false,
            epochs: Vec::new(),
            faults: 0,
            markers_sent: 0,
        };
        for _ in 0..buses {
            let bus = Bus::with_link(place.link(), options.clone()).await.expect("a bus");
            world.markers.push(bus.subscribe(&topic(MARKER), 1000));
            world.buses.push(bus);
            world.sent.push(Vec::new());
        }
        world
    }

    async fn take(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Subscribe { bus, size, ref topics } => {
                let bus = bus % self.buses.len();
                let names: Vec<Topic> = topics.iter().map(|number| topic(TOPICS[*number])).collect();
                let subscription = Some(self.buses[bus].subscribe_all(&names, size));
                let topics: HashSet<usize> = topics.iter().copied().collect();
                let follows =
                    topics.into_iter().map(|topic| Follow { topic, from: self.now, until: None }).collect();
                self.readers.push(Reader { bus, size, subscription, follows, log: Vec::new() });
            }
            Step::Follow { subscription, topic: number } => {
                let now = self.now;
                let reader = self.reader(subscription);
                if let Some(subscription) = &mut reader.subscription
                    && subscription.subscribe(&topic(TOPICS[number]))
                {
                    reader.follows.push(Follow { topic: number, from: now, until: None });
                }
            }
            Step::Unfollow { subscription, topic: number } => {
                let now = self.now;
                let reader = self.reader(subscription);
                if let Some(subscription) = &mut reader.subscription
                    && subscription.unsubscribe(&topic(TOPICS[number]))
                {
                    reader.leave(now, number);
                }
            }
            Step::Drop { subscription } => {
                let now = self.now;
                let reader = self.reader(subscription);
                reader.subscription = None;
                (0..TOPICS.len()).for_each(|topic| reader.leave(now, topic));
            }
            Step::Read { subscription, most } => {
                let now = self.now;
                self.reader(subscription).read(now, most)?;
            }
            Step::Notify { bus, topic } => self.notify(bus, topic).await?,
            Step::NotifySoon { bus, topic, bytes } => self.notify_soon(bus, topic, Payload::Own { bytes }),
            Step::NotifyEqual { bus, topic } => self.notify_soon(bus, topic, Payload::Equal),
            Step::Burst { bus, topic } => {
                (0..QUEUE + 100).for_each(|_| self.notify_soon(bus, topic, Payload::Own { bytes: 0 }));
            }
            Step::Yield { times } => {
                for _ in 0..times {
                    yield_now().await;
                }
                self.breath += 1;
            }
            Step::EndEpoch => self.end_epoch().await?,
            Step::Cut => {
                self.faults += 1;
                self.place.cut().await;
                self.breath += 1;
            }
            Step::CutBeforeNotify => {
                self.faults += 1;
                self.place.cut_before_notify(CHANNEL);
            }
            Step::CutAnswer => {
                self.faults += 1;
                self.place.cut_answer_to_notify(CHANNEL);
            }
            Step::BlackHole => {
                self.faults += 1;
                self.place.black_hole();
            }
            Step::Stop => {
                self.faults += 1;
                self.is_away = true;
                self.place.stop();
            }
            Step::Start => self.start(),
        }
        Ok(())
    }

    fn reader(&mut self, number: usize) -> &mut Reader {
        let number = number % self.readers.len();
        &mut self.readers[number]
    }

    fn start(&mut self) {
        self.faults += 1;
        self.is_away = false;
        self.place.start();
    }

    /// Records a call, and returns its arguments.
    fn note(&mut self, bus: usize, number: usize, payload: Payload) -> (Topic, String) {
        let sent = &mut self.sent[bus];
        let (payload, is_equal) = match payload {
            Payload::Own { bytes } => (format!("{bus} {} {}", sent.len(), "x".repeat(bytes)), false),
            Payload::Equal => (format!("{bus} again "), true),
        };
        let epoch = self.epochs.len();
        sent.push(Sent {
            topic: number,
            payload: payload.clone(),
            is_equal,
            at: self.now,
            epoch,
            breath: self.breath,
        });
        self.calls[bus] += 1;
        (topic(TOPICS[number]), payload)
    }

    fn notify_soon(&mut self, bus: usize, number: usize, payload: Payload) {
        let bus = bus % self.buses.len();
        let (topic, payload) = self.note(bus, number, payload);
        self.buses[bus].notify_soon_with(&topic, &payload).expect("accepted");
    }

    async fn notify(&mut self, bus: usize, number: usize) -> Result<(), TestCaseError> {
        let bus = bus % self.buses.len();
        let (topic, payload) = self.note(bus, number, Payload::Own { bytes: 0 });
        let handle = self.buses[bus].clone();
        let mut call = Box::pin(async move { handle.notify_with(&topic, &payload).await });
        if !self.is_away {
            let sent = acknowledged(call).await;
            self.breath += 1;
            return sent;
        }
        prop_assert_eq!((&mut call).now_or_never(), None, "it cannot have been sent");
        self.waiting.push(call);
        Ok(())
    }

    /// Makes every bus notify every bus until all have received everything without a gap. All that was sent before has then
    /// been routed, or a gap has replaced it.
    async fn end_epoch(&mut self) -> Result<(), TestCaseError> {
        if self.is_away {
            self.start();
        }
        for call in std::mem::take(&mut self.waiting) {
            acknowledged(call).await?;
        }
        loop {
            self.markers_sent += 1;
            let round = self.markers_sent;
            for (number, bus) in self.buses.iter().enumerate() {
                self.calls[number] += 1;
                acknowledged(bus.notify_with(&topic(MARKER), &format!("{number} {round}"))).await?;
            }
            let mut is_whole = true;
            for marker in &mut self.markers {
                is_whole &= heard(marker, self.buses.len(), round).await?;
            }
            if is_whole {
                break;
            }
        }
        for (bus, calls) in self.buses.iter().zip(&self.calls) {
            let state = bus.state();
            prop_assert_eq!(state.pending, 0);
            prop_assert_eq!(state.sent + state.coalesced, *calls, "each call is sent, or one with another");
        }
        self.breath += 1;
        self.epochs.push((self.now, std::mem::take(&mut self.faults)));
        Ok(())
    }

    fn judge(&self) -> Result<(), TestCaseError> {
        let is_calm = self.epochs.iter().all(|(_, faults)| *faults == 0)
            && self.sent.iter().all(|sent| sent.len() < QUEUE);
        for reader in &self.readers {
            for (bus, sent) in self.sent.iter().enumerate() {
                self.judge_order(reader, bus, sent)?;
                self.judge_whole(reader, bus, sent)?;
            }
            self.judge_count(reader)?;
            let is_lagged = |gap: &Gap| gap.reason == GapReason::Lagged;
            prop_assert!(
                !is_calm || reader.gaps().all(|(_, _, gap)| is_lagged(&gap)),
                "a gap of nothing: {reader}"
            );
        }
        Ok(())
    }

    /// Asserts that it received only notifications that it followed, in their order, and each once.
    fn judge_order(&self, reader: &Reader, bus: usize, sent: &[Sent]) -> Result<(), TestCaseError> {
        let mut last = None;
        let mut equal: HashMap<usize, usize> = HashMap::new();
        for (topic, payload) in reader.notifications() {
            let mut words = payload.split(' ');
            let (Some(from), Some(what)) = (words.next(), words.next()) else {
                return Err(TestCaseError::fail(format!("{:?} was never sent: {reader}", short(payload))));
            };
            if from != bus.to_string() {
                continue;
            }
            let topic = TOPICS.iter().position(|name| *name == topic);
            let Ok(number) = what.parse::<usize>() else {
                *equal.entry(topic.unwrap_or(TOPICS.len())).or_default() += 1;
                continue;
            };
            let Some(sent) = sent.get(number).filter(|sent| Some(sent.topic) == topic && !sent.is_equal)
            else {
                return Err(TestCaseError::fail(format!("{:?} of another topic: {reader}", short(payload))));
            };
            prop_assert!(
                self.may(reader, sent),
                "{:?} is of what it does not follow: {reader}",
                short(payload)
            );
            let is_next = last.is_none_or(|last| number > last);
            prop_assert!(is_next || self.faults_of(sent) > 0, "{:?} out of turn: {reader}", short(payload));
            last = last.max(Some(number));
        }
        for (topic, count) in equal {
            let mut flushes = HashSet::new();
            let all = sent.iter().filter(|sent| sent.is_equal && sent.topic == topic);
            let all = all.filter(|sent| self.may(reader, sent) && flushes.insert(sent.breath));
            let most: usize = all.map(|sent| 1 + self.faults_of(sent)).sum();
            prop_assert!(count <= most, "{count} of at most {most} equal ones: {reader}");
        }
        let mut counts: HashMap<&str, usize> = HashMap::new();
        for (_, payload) in reader.notifications() {
            *counts.entry(payload).or_default() += 1;
        }
        for sent in sent.iter().filter(|sent| !sent.is_equal) {
            let count = counts.get(&*sent.payload).copied().unwrap_or_default();
            prop_assert!(
                count <= 1 + self.faults_of(sent),
                "{:?} {count} times: {reader}",
                short(&sent.payload)
            );
        }
        Ok(())
    }

    /// Asserts that it received all that it followed, or a gap in its place or later.
    fn judge_whole(&self, reader: &Reader, bus: usize, sent: &[Sent]) -> Result<(), TestCaseError> {
        if reader.subscription.is_none() {
            return Ok(());
        }
        // For each notification, its first delivery, and the last delivery of an equal one.
        let (mut places, mut equals) = (HashMap::new(), HashMap::<(&str, &str), (At, usize)>::new());
        for (place, (at, delivery)) in reader.log.iter().enumerate() {
            let Delivery::Notification(notification) = delivery else { continue };
            places.entry(notification.payload()).or_insert(place);
            let topic = notification.topic().map(Topic::as_str).unwrap_or_default();
            let (last, count) = equals.entry((topic, notification.payload())).or_default();
            (*last, *count) = (*at, *count + 1);
        }
        let gaps: Vec<(usize, At, Gap)> = reader.gaps().collect();
        // The gap's place is after all that was sent before it and has arrived.
        let mut place = 0;
        let mut epochs: HashMap<usize, HashSet<usize>> = HashMap::new();
        for sent in sent {
            if sent.is_equal {
                if self.must(reader, sent) {
                    let told = equals.get(&(TOPICS[sent.topic], &*sent.payload));
                    let is_told = told.is_some_and(|(last, _)| *last >= sent.at);
                    let is_covered = gaps.iter().any(|(_, at, _)| *at >= sent.at);
                    prop_assert!(
                        is_told || is_covered,
                        "nothing since {:?} at {}: {reader}",
                        sent.payload,
                        sent.at
                    );
                    epochs.entry(sent.topic).or_default().insert(sent.epoch);
                }
            } else if let Some(delivered) = places.get(&*sent.payload) {
                place = place.max(delivered + 1);
            } else if self.must(reader, sent) {
                let is_covered = gaps.iter().any(|(gap, at, _)| *gap >= place && *at >= sent.at);
                prop_assert!(
                    is_covered,
                    "{:?} of step {} is missing: {reader}",
                    short(&sent.payload),
                    sent.at
                );
            }
        }
        for (topic, epochs) in epochs {
            let payload = format!("{bus} again ");
            let count = equals.get(&(TOPICS[topic], &*payload)).map_or(0, |(_, count)| *count);
            let least = epochs.len();
            prop_assert!(
                count >= least || !gaps.is_empty(),
                "{count} of at least {least} {payload:?}: {reader}"
            );
        }
        Ok(())
    }

    /// Asserts that a gap's count is the number of missing notifications.
    fn judge_count(&self, reader: &Reader) -> Result<(), TestCaseError> {
        let missed: Option<u64> = reader.gaps().map(|(_, _, gap)| gap.missed).sum();
        let (Some(missed), Some(_)) = (missed, &reader.subscription) else { return Ok(()) };
        let told = usize::try_from(missed).expect("few") + reader.notifications().count();
        let (mut least, mut most) = (0, 0);
        let (mut flushes, mut breaths) = (HashSet::new(), HashSet::new());
        for (bus, sent) in
            self.sent.iter().enumerate().flat_map(|(bus, all)| all.iter().map(move |it| (bus, it)))
        {
            if self.may(reader, sent) && (!sent.is_equal || breaths.insert((bus, sent.topic, sent.breath))) {
                most += 1 + self.faults_of(sent);
            }
            // Equal notifications of one epoch may have been sent as one.
            if self.must(reader, sent) && (!sent.is_equal || flushes.insert((bus, sent.topic, sent.epoch))) {
                least += 1;
            }
        }
        prop_assert!((least..=most).contains(&told), "{told} of {least} to {most} were told of: {reader}");
        Ok(())
    }

    fn must(&self, reader: &Reader, sent: &Sent) -> bool {
        let end = self.epochs[sent.epoch].0;
        reader.follows.iter().any(|follow| {
            follow.topic == sent.topic
                && follow.from < sent.at
                && follow.until.is_none_or(|until| until > end)
        })
    }

    fn may(&self, reader: &Reader, sent: &Sent) -> bool {
        let end = self.epochs[sent.epoch].0;
        reader.follows.iter().any(|follow| {
            follow.topic == sent.topic
                && follow.from <= end
                && follow.until.is_none_or(|until| until >= sent.at)
        })
    }

    fn faults_of(&self, sent: &Sent) -> usize {
        self.epochs[sent.epoch].1
    }
}

async fn acknowledged(call: impl Future<Output = Result<(), NotifyError>>) -> Result<(), TestCaseError> {
    let called = timeout(PATIENCE, call).await;
    prop_assert_eq!(called.ok(), Some(Ok(())), "a notification was not sent");
    Ok(())
}

/// Reads until every bus was heard in this round; false after a gap.
async fn heard(marker: &mut Subscription, buses: usize, round: usize) -> Result<bool, TestCaseError> {
    let mut missing: HashSet<String> = (0..buses).map(|bus| format!("{bus} {round}")).collect();
    let mut is_whole = true;
    while !missing.is_empty() {
        match timeout(PATIENCE, marker.recv()).await {
            Ok(Some(Delivery::Notification(notification))) => {
                missing.remove(notification.payload());
            }
            // A missing notification may be lost, or still on its way.
            Ok(Some(Delivery::Gap(_))) => {
                is_whole = false;
                break;
            }
            nothing => {
                return Err(TestCaseError::fail(format!("neither {missing:?} nor a gap, but {nothing:?}")));
            }
        }
    }
    Ok(is_whole)
}

impl Reader {
    /// Topics and payloads.
    fn notifications(&self) -> impl Iterator<Item = (&str, &str)> {
        self.log.iter().filter_map(|(_, delivery)| match delivery {
            Delivery::Notification(notification) => {
                Some((notification.topic().map(Topic::as_str).unwrap_or_default(), notification.payload()))
            }
            Delivery::Gap(_) => None,
        })
    }

    /// For each delivery, its place and its time.
    fn gaps(&self) -> impl Iterator<Item = (usize, At, Gap)> {
        self.log.iter().enumerate().filter_map(|(place, (at, delivery))| match delivery {
            Delivery::Gap(gap) => Some((place, *at, *gap)),
            Delivery::Notification(_) => None,
        })
    }
}

/// A shorter form for messages.
fn short(payload: &str) -> &str {
    payload.get(..12).unwrap_or(payload)
}

/// For messages.
impl std::fmt::Display for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a subscription of bus {} with room for {}, which was told", self.bus, self.size)?;
        for (at, delivery) in self.log.iter().take(100) {
            match delivery {
                Delivery::Notification(it) => write!(f, " {:?}@{at}", short(it.payload()))?,
                Delivery::Gap(gap) => write!(f, " [{gap}]@{at}")?,
            }
        }
        Ok(())
    }
}
