//! Random sequences of events, and a model of what the state must return for each.
//!
//! The model holds everything that the state has handed out, and identifies connections and callers by numbers. Nothing here does
//! I/O, so 100 000 events take a few seconds. A failure prints the seed and the shortest failing list of events:
//!
//! ```sh
//! POOL_MODEL_SEED=… cargo test -p db-core --lib model
//! ```
//!
//! `POOL_MODEL_STEPS` sets the number of events.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::str::FromStr;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use proptest::{prop_assert, prop_assert_eq};

use super::*;

/// Events of one run, on average.
const LENGTH: usize = 200;

/// An event. Its numbers select an item modulo the count of items; without items, nothing happens.
#[derive(Debug, Clone)]
enum Event {
    Take(Lane),
    /// This number of milliseconds passes, and a caller looks whether it has waited for too long.
    Wait(u64),
    Leave(usize),
    GiveBack(usize, Wear),
    Quarantine(usize),
    Lose(usize, AtServer),
    MarkSlow(usize),
    Readmit(usize, Wear),
    Release(usize),
    LoseQuarantined(usize),
    Dialled(usize),
    DialFailed(usize, IsFinal),
    PauseEnded(usize),
    SetLimits(Limits),
    Reserve(u32),
    Demoted(usize),
    PlansStale,
    TypesStale(usize),
    /// The idle connections whose number is divisible by these are expired, unused or silent.
    TimePassed {
        expired: u64,
        unused: u64,
        silent: u64,
    },
    WarmUp,
    Close,
}

type IsFinal = bool;

/// The outcome of the dials since the last success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Server {
    Answers,
    Fails,
    /// The server refused a login permanently, so nothing is dialled for `min_idle` for some time.
    Refuses,
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let pick = || 0usize..64;
    let wear = || prop_oneof![6 => Just(Wear::Usable), 1 => Just(Wear::WornOut(CloseReason::Uses))];
    let at_server = prop_oneof![Just(AtServer::Nothing), Just(AtServer::Statement)];
    let event = prop_oneof![
        60 => lane().prop_map(Event::Take),
        14 => (0u64..300).prop_map(Event::Wait),
        6 => pick().prop_map(Event::Leave),
        30 => (pick(), wear()).prop_map(|(pick, wear)| Event::GiveBack(pick, wear)),
        14 => pick().prop_map(Event::Quarantine),
        6 => (pick(), at_server).prop_map(|(pick, at_server)| Event::Lose(pick, at_server)),
        20 => pick().prop_map(Event::MarkSlow),
        12 => (pick(), wear()).prop_map(|(pick, wear)| Event::Readmit(pick, wear)),
        8 => pick().prop_map(Event::Release),
        4 => pick().prop_map(Event::LoseQuarantined),
        30 => pick().prop_map(Event::Dialled),
        8 => (pick(), any::<IsFinal>()).prop_map(|(pick, is_final)| Event::DialFailed(pick, is_final)),
        8 => pick().prop_map(Event::PauseEnded),
        6 => limits().prop_map(Event::SetLimits),
        1 => (0u32..4).prop_map(Event::Reserve),
        1 => pick().prop_map(Event::Demoted),
        1 => Just(Event::PlansStale),
        1 => pick().prop_map(Event::TypesStale),
        8 => (1u64..8, 1u64..8, 1u64..8)
            .prop_map(|(expired, unused, silent)| Event::TimePassed { expired, unused, silent }),
        1 => Just(Event::WarmUp),
        1 => prop_oneof![3 => lane().prop_map(Event::Take), 1 => Just(Event::Close)],
    ];
    vec(event, 0..=2 * LENGTH)
}

fn limits() -> impl Strategy<Value = Limits> {
    let most = || prop_oneof![Just(None), (0u32..6).prop_map(Some)];
    let target = prop_oneof![Just(None), (20u64..200).prop_map(Some)];
    let sizes = (0u32..9, most(), 0u32..5, most());
    (sizes, target, 0u64..900).prop_map(|((max, max_idle, min_idle, max_waiting), target, interval)| Limits {
        max,
        max_idle,
        min_idle,
        max_waiting,
        queue_target: target.map(Duration::from_millis),
        queue_interval: Duration::from_millis(interval),
    })
}

fn lane() -> impl Strategy<Value = Lane> {
    prop_oneof![2 => Just(Lane::Urgent), 4 => Just(Lane::Plain), 2 => Just(Lane::Patient)]
}

/// A connection, which cannot be copied.
#[derive(Debug)]
struct Conn {
    number: u64,
    generation: u64,
}

/// A caller's number.
type Caller = u64;

/// A caller in the queue.
#[derive(Debug)]
struct Waiter {
    caller: Caller,
    ticket: Ticket,
    lane: Lane,
    since: Instant,
}

/// What the pool has seen of the time that callers wait.
#[derive(Debug, Clone, Copy)]
enum Seen {
    /// A caller got a connection in time.
    Good(Instant),
    /// A caller had waited for too long, since the first time, when it was seen at the second, with this interval.
    Late(Instant, Instant, Duration),
}

type Outcome = Result<(), TestCaseError>;

/// The model's own record of where everything is. Everything that the state hands out is stored before any assertion, since a token
/// must not be dropped.
struct Model {
    state: PoolState<Conn, Caller>,
    now: Instant,
    limits: Limits,
    reserved: Option<u32>,
    /// The numbers of the connections that the state holds.
    idle: BTreeSet<u64>,
    in_use: Vec<(Conn, Checkout)>,
    /// `None` if only the session at the server is left.
    quarantined: Vec<(Option<Conn>, Quarantined)>,
    dialling: Vec<Dialling>,
    /// In the order in which they came.
    queue: Vec<Waiter>,
    seen: Vec<Seen>,
    /// Those served before the caller that has waited for longest, while it has.
    served_before: (Option<Caller>, u32),
    passed: u32,
    owes_oldest: bool,
    dialled: u64,
    closed: u64,
    callers: u64,
    generation: u64,
    roles: u64,
    types: u64,
    server: Server,
    is_asleep: bool,
    is_closing: bool,
}

impl Drop for Model {
    /// Forgets the tokens that a failed run still holds.
    fn drop(&mut self) {
        std::mem::forget(std::mem::take(&mut self.in_use));
        std::mem::forget(std::mem::take(&mut self.quarantined));
        std::mem::forget(std::mem::take(&mut self.dialling));
    }
}

impl Model {
    fn new(limits: Limits, is_asleep: bool) -> Self {
        let mut state = PoolState::new(limits);
        if is_asleep {
            state.sleep();
        }
        Self {
            state,
            now: Instant::now(),
            limits,
            reserved: None,
            idle: BTreeSet::new(),
            in_use: Vec::new(),
            quarantined: Vec::new(),
            dialling: Vec::new(),
            queue: Vec::new(),
            seen: Vec::new(),
            served_before: (None, 0),
            passed: 0,
            owes_oldest: false,
            dialled: 0,
            closed: 0,
            callers: 0,
            generation: 0,
            roles: 0,
            types: 0,
            server: Server::Answers,
            is_asleep,
            is_closing: false,
        }
    }

    fn limit(&self) -> usize {
        (self.limits.max.saturating_sub(self.reserved.unwrap_or(0)).max(1)) as usize
    }

    fn slow(&self) -> usize {
        self.quarantined.iter().filter(|(_, quarantined)| quarantined.slow.is_some()).count()
    }

    /// Connections that are open or being dialled.
    fn sum(&self) -> usize {
        self.in_use.len() + self.idle.len() + self.quarantined.len() + self.dialling.len()
    }

    /// The number of them that count against the limit.
    fn claimed(&self) -> usize {
        self.sum() - self.slow().min(EXTRA as usize)
    }

    /// Applies an event, and checks the state's reaction.
    fn step(&mut self, event: &Event) -> Outcome {
        let before = self.sum();
        self.happen(event)?;
        let max = self.limit() + EXTRA as usize;
        prop_assert!(before <= max || self.sum() <= before, "above the limit, the sum only falls");
        self.agree()
    }

    fn happen(&mut self, event: &Event) -> Outcome {
        match *event {
            Event::Take(lane) => self.take(lane),
            Event::Wait(milliseconds) => {
                self.now += Duration::from_millis(milliseconds);
                let expected = self.late_callers();
                let late = self.state.take_late(self.now);
                self.are_refused(late, &expected)
            }
            Event::Leave(pick) => {
                if let Some(pick) = picked(pick, self.queue.len()) {
                    let waiter = self.queue.remove(pick);
                    self.state.leave(waiter.ticket);
                }
                Ok(())
            }
            Event::GiveBack(pick, wear) => {
                let Some(pick) = picked(pick, self.in_use.len()) else { return Ok(()) };
                let expected = self.late_callers();
                let (conn, checkout) = self.in_use.remove(pick);
                let number = conn.number;
                let Placed { place, late } =
                    self.state.give_back(conn, checkout, wear, worker(number), self.now);
                self.placed(number, place, wear, false).and(self.are_refused(late, &expected))
            }
            Event::Quarantine(pick) => {
                let Some((conn, checkout)) = remove(&mut self.in_use, pick) else { return Ok(()) };
                let quarantined = self.state.quarantine(checkout);
                self.quarantined.push((Some(conn), quarantined));
                Ok(())
            }
            Event::Lose(pick, at_server) => {
                let Some((conn, checkout)) = remove(&mut self.in_use, pick) else { return Ok(()) };
                let loss = self.state.lose(checkout, conn.generation, at_server, self.now);
                self.closed += u64::from(at_server == AtServer::Nothing);
                self.lost(&conn, at_server, loss)
            }
            Event::MarkSlow(pick) => {
                let Some(pick) = picked(pick, self.quarantined.len()) else { return Ok(()) };
                let dials = self.state.mark_slow(&mut self.quarantined[pick].1, self.now);
                self.begun(dials)
            }
            Event::Readmit(pick, wear) => self.readmit(pick, wear),
            Event::Release(pick) => {
                let Some((_, quarantined)) = remove(&mut self.quarantined, pick) else { return Ok(()) };
                self.closed += 1;
                let dials = self.state.released(quarantined, self.now);
                self.begun(dials)
            }
            Event::LoseQuarantined(pick) => self.lose_quarantined(pick),
            Event::Dialled(pick) => {
                let Some(pick) = picked(pick, self.dialling.len()) else { return Ok(()) };
                let expected = self.late_callers();
                let dialling = self.dialling.remove(pick);
                let conn = Conn { number: self.dialled, generation: self.generation };
                let number = conn.number;
                self.dialled += 1;
                self.server = Server::Answers;
                let (Placed { place, late }, dials) =
                    self.state.dialled(dialling, conn, worker(number), self.now);
                let refused = self.are_refused(late, &expected);
                self.placed(number, place, Wear::Usable, true).and(self.begun(dials)).and(refused)
            }
            Event::DialFailed(pick, is_final) => self.dial_failed(pick, is_final),
            Event::PauseEnded(pick) => {
                if let Some(dialling) = remove(&mut self.dialling, pick) {
                    let continues = self.state.pause_ended(dialling);
                    self.dialling.extend(continues);
                }
                Ok(())
            }
            Event::SetLimits(limits) => {
                self.limits = limits;
                let actions = self.state.set_limits(limits, self.now);
                self.perform(actions, Some(CloseReason::Limit))?;
                self.is_trimmed()
            }
            Event::Reserve(connections) => self.reserve(connections),
            Event::Demoted(pick) => self.demoted(pick),
            Event::PlansStale => {
                let plans = self.state.plans_stale();
                prop_assert_eq!(plans, self.state.standard().plans);
                Ok(())
            }
            Event::TypesStale(pick) => self.types_stale(pick),
            Event::TimePassed { expired, unused, silent } => self.time_passed(expired, unused, silent),
            Event::WarmUp => {
                if self.server == Server::Refuses {
                    self.server = Server::Fails;
                }
                let dials = self.state.warm_up(self.now);
                self.begun(dials)?;
                self.dials_enough_for_min_idle()
            }
            Event::Close => {
                self.is_closing = true;
                let mut actions = self.state.close();
                let refused = std::mem::take(&mut actions.refuse);
                self.refused(&refused).and(self.perform(actions, Some(CloseReason::Shut)))
            }
        }
    }

    fn take(&mut self, lane: Lane) -> Outcome {
        let caller = self.callers;
        self.callers += 1;
        let room = self.limit().saturating_sub(self.in_use.len());
        let is_full = self.limits.max_waiting.is_some_and(|most| self.queue.len() >= most as usize + room);
        let last_patient = self.queue.iter().rposition(|waiter| waiter.lane == Lane::Patient);
        let is_crowded = is_full && (lane == Lane::Patient || last_patient.is_none());
        let foretold = self.state.would_refuse(lane, self.now, |_| Duration::MAX);
        let is_late =
            self.limits.queue_target.is_some() && self.is_long() && self.queue.len() >= self.dialable();
        match self.state.take(worker(caller), lane, self.now) {
            Take::Idle(conn, checkout, standard) => {
                let number = conn.number;
                self.in_use.push((conn, checkout));
                // Without a target, nothing is late.
                if self.limits.queue_target.is_some() {
                    self.seen.push(Seen::Good(self.now));
                }
                prop_assert_eq!(foretold, None);
                prop_assert!(self.idle.remove(&number), "{number} was not idle");
                prop_assert!(!self.is_closing);
                prop_assert_eq!(standard.generation, self.generation);
            }
            Take::MayWait => {
                prop_assert!(!self.is_closing && self.idle.is_empty() && !is_crowded);
                self.is_asleep = false;
                prop_assert_eq!(foretold, is_late.then_some(Refused::Late));
                let displaced = last_patient.filter(|_| is_full).map(|at| self.queue.remove(at).caller);
                let has_room = self.queue.len() < room;
                let joined = self.state.wait(caller, lane, self.now);
                let (ticket, since) = (joined.ticket, self.now);
                self.queue.push(Waiter { caller, ticket, lane, since });
                self.begun(joined.dial)?;
                prop_assert_eq!(joined.displaced, displaced, "the patient caller that came last makes room");
                prop_assert_eq!(joined.room == Room::ToDial, has_room);
            }
            Take::Shed => {
                prop_assert!(!self.is_closing && self.idle.is_empty() && is_crowded);
                prop_assert_eq!(foretold, Some(Refused::Shed));
            }
            Take::Closed => {
                prop_assert!(self.is_closing);
                prop_assert_eq!(foretold, Some(Refused::Closed));
            }
        }
        self.is_asleep &= self.is_closing;
        Ok(())
    }

    fn readmit(&mut self, pick: usize, wear: Wear) -> Outcome {
        let Some(pick) = picked(pick, self.quarantined.len()) else { return Ok(()) };
        if self.quarantined[pick].0.is_none() {
            return Ok(());
        }
        let expected = self.late_callers();
        let (conn, quarantined) = self.quarantined.remove(pick);
        let mut conn = conn.expect("looked at above");
        conn.generation = self.generation;
        let number = conn.number;
        let (Placed { place, late }, dials) =
            self.state.readmit(quarantined, conn, wear, worker(number), self.now);
        let refused = self.are_refused(late, &expected);
        self.placed(number, place, wear, false).and(self.begun(dials)).and(refused)
    }

    fn dial_failed(&mut self, pick: usize, is_final: bool) -> Outcome {
        let Some(dialling) = remove(&mut self.dialling, pick) else { return Ok(()) };
        self.server =
            if is_final || self.server == Server::Refuses { Server::Refuses } else { Server::Fails };
        match self.state.dial_failed(dialling, is_final, self.now) {
            AfterFailure::Retry(dialling) => {
                self.dialling.push(dialling);
                prop_assert!(!is_final && self.dialling.len() == 1 && !self.is_closing);
            }
            AfterFailure::Stop(refused) if refused.is_empty() => {
                let is_hopeless = is_final && self.in_use.is_empty() && self.quarantined.is_empty();
                prop_assert!(!is_hopeless || self.queue.is_empty(), "callers wait for nothing");
            }
            AfterFailure::Stop(refused) => {
                prop_assert!(is_final && self.in_use.is_empty() && self.quarantined.is_empty());
                self.refused(&refused)?;
            }
        }
        Ok(())
    }

    fn time_passed(&mut self, expired: u64, unused: u64, silent: u64) -> Outcome {
        self.now += Duration::from_secs(7);
        let age = |number: u64| Age {
            is_expired: number.is_multiple_of(expired + 1),
            is_unused: number.is_multiple_of(unused),
            is_silent: number.is_multiple_of(silent),
        };
        let before = self.idle.len();
        let over = (self.in_use.len() + before).saturating_sub(self.limit());
        let actions = self.state.time_passed(self.now, |conn| age(conn.number));
        let closed = actions.close.len();
        let expired = actions.close.iter().filter(|closing| age(closing.conn.number).is_expired).count();
        let are_named = actions.close.iter().enumerate().all(|(at, closing)| {
            let age = age(closing.conn.number);
            match closing.why {
                CloseReason::Limit => at < over,
                CloseReason::Lifetime => age.is_expired,
                CloseReason::Idle => age.is_unused && !age.is_expired,
                _ => false,
            }
        });
        let are_silent = actions.verify.iter().all(|(conn, _)| age(conn.number).is_silent);
        let spare = before.saturating_sub(self.limits.min_idle as usize);
        self.carry_out(actions)?;
        prop_assert!(closed <= over.max(spare) + expired, "closed without being too many or too old");
        prop_assert!(are_named, "closed for another reason than is said");
        prop_assert!(are_silent, "verified without having been silent");
        for number in &self.idle {
            let age = age(*number);
            prop_assert!(!age.is_expired && !age.is_silent, "{number} is expired or silent, and still idle");
        }
        self.dials_enough_for_min_idle()
    }

    fn lose_quarantined(&mut self, pick: usize) -> Outcome {
        let whole = self.quarantined.iter().filter(|(conn, _)| conn.is_some()).count();
        let Some(pick) = picked(pick, whole) else { return Ok(()) };
        self.quarantined.sort_by_key(|(conn, _)| conn.is_none());
        let (conn, quarantined) = self.quarantined.remove(pick);
        let conn = conn.expect("sorted to the front");
        self.closed += 1;
        let loss = self.state.lose_quarantined(quarantined, conn.generation, self.now);
        self.lost(&conn, AtServer::Nothing, loss)
    }

    fn reserve(&mut self, connections: u32) -> Outcome {
        if self.reserved.is_none() {
            let (reserved, actions) = self.state.reserve(connections);
            self.reserved = Some(reserved);
            self.perform(actions, Some(CloseReason::Limit))?;
            self.is_trimmed()?;
            prop_assert!(reserved >= 1 && (reserved < self.limits.max || self.limits.max < 2));
        }
        Ok(())
    }

    fn demoted(&mut self, pick: usize) -> Outcome {
        let Some(pick) = picked(pick, self.in_use.len()) else { return Ok(()) };
        let generation = self.in_use[pick].0.generation;
        let is_news = generation >= self.roles;
        let Some(actions) = self.state.demoted(generation) else {
            prop_assert!(!is_news);
            return Ok(());
        };
        self.generation += 1;
        self.roles = self.generation;
        self.perform(actions, None)?;
        prop_assert!(is_news && self.idle.is_empty(), "all idle connections are verified, once");
        Ok(())
    }

    fn types_stale(&mut self, pick: usize) -> Outcome {
        // Reported by a connection of the current count or of the previous one.
        let types = self.types.saturating_sub(u64::from(pick % 2 == 1));
        let is_news = types == self.types;
        let actions = self.state.types_stale(types);
        self.types += u64::from(is_news);
        let left = if is_news { 0 } else { self.idle.len() };
        self.perform(actions, Some(CloseReason::Evicted))?;
        prop_assert_eq!(self.idle.len(), left, "all idle connections are closed, once");
        Ok(())
    }

    /// The number of connections that may be dialled, or are.
    fn dialable(&self) -> usize {
        let slow = self.slow().min(EXTRA as usize);
        (self.limit() + slow).saturating_sub(self.in_use.len() + self.idle.len() + self.quarantined.len())
    }

    /// Whether nobody was served in time for a whole interval, from everything that was seen: going back, one late caller after the other, each
    /// seen within an interval of the next, until somebody was served in time.
    fn is_long(&self) -> bool {
        let interval = self.limits.queue_interval;
        let (mut next, mut within, mut first) = (self.now, interval, None);
        for seen in self.seen.iter().rev() {
            match *seen {
                Seen::Late(since, at, interval) if next - at <= within => {
                    (next, within, first) = (at, interval, Some(since));
                }
                Seen::Late(..) | Seen::Good(_) => break,
            }
        }
        let good = self.seen.iter().rev().find_map(|seen| match seen {
            Seen::Good(at) => Some(*at),
            Seen::Late(..) => None,
        });
        first.is_some_and(|first| self.now >= good.map_or(first, |good| good.max(first)) + interval)
    }

    /// Takes the callers out of the queue that are to be refused because they have waited for too long.
    fn late_callers(&mut self) -> Vec<Caller> {
        let mut expected = Vec::new();
        if let Some(target) = self.limits.queue_target {
            // Those whose turn comes first have the connections that may be dialled.
            let mut in_turn: Vec<_> =
                self.queue.iter().map(|waiter| (waiter.lane as u8, waiter.caller)).collect();
            in_turn.sort_unstable();
            let exempt: BTreeSet<_> =
                in_turn.into_iter().take(self.dialable()).map(|(_, caller)| caller).collect();
            let is_exempt = |waiter: &Waiter| exempt.contains(&waiter.caller);
            let waits =
                self.queue.iter().filter(|waiter| !is_exempt(waiter)).map(|waiter| waiter.since).min();
            if let Some(since) = waits.filter(|since| self.now > *since + target) {
                self.seen.push(Seen::Late(since + target, self.now, self.limits.queue_interval));
            }
            if self.is_long() {
                let now = self.now;
                let times = |lane| if lane == Lane::Patient { 1 } else { 2 };
                let is_late = |waiter: &mut Waiter| {
                    !is_exempt(waiter) && now >= waiter.since + target * times(waiter.lane)
                };
                expected.extend(self.queue.extract_if(.., is_late).map(|waiter| waiter.caller));
            }
        }
        expected
    }

    fn are_refused(&self, mut refused: Vec<Caller>, expected: &[Caller]) -> Outcome {
        refused.sort_unstable();
        prop_assert_eq!(&refused, expected, "refused for their wait");
        for waiter in &self.queue {
            let next = self.state.look_at(waiter.lane, waiter.since, self.now);
            prop_assert!(next.is_none_or(|next| next > self.now), "a caller would look again at once");
        }
        Ok(())
    }

    /// Takes the caller out of the queue whose turn it is.
    fn next_caller(&mut self, is_new: bool) -> Option<Caller> {
        let first = self.queue.iter().map(|waiter| waiter.lane as u8).min()?;
        let in_first = self.queue.iter().position(|waiter| waiter.lane as u8 == first);
        let behind = self.queue.iter().position(|waiter| waiter.lane as u8 > first);
        let at = if std::mem::take(&mut self.owes_oldest) {
            0
        } else if self.passed >= 3 {
            behind.or(in_first)?
        } else {
            in_first?
        };
        if self.queue[at].lane as u8 > first {
            self.passed = 0;
            self.owes_oldest = at > 0;
        } else {
            self.passed += u32::from(behind.is_some());
        }
        let oldest = self.queue.first().map(|waiter| waiter.caller);
        if self.served_before.0 != oldest {
            self.served_before = (oldest, 0);
        }
        self.served_before.1 += 1;
        let next = self.queue.remove(at);
        let has_overtaken = at > 0;
        let queued = self.now - next.since;
        match self.limits.queue_target {
            // A wait for a dial says nothing.
            _ if is_new => {}
            Some(target) if queued > target => {
                self.seen.push(Seen::Late(next.since + target, self.now, self.limits.queue_interval));
            }
            _ if has_overtaken => {}
            _ => self.seen.push(Seen::Good(self.now)),
        }
        Some(next.caller)
    }

    /// Records the place of a returned connection.
    fn placed(&mut self, number: u64, place: Place<Conn, Caller>, wear: Wear, is_new: bool) -> Outcome {
        let is_over = self.in_use.len() + self.idle.len() >= self.limit();
        let max_idle = self.limits.max_idle.unwrap_or(u32::MAX).max(self.limits.min_idle) as usize;
        let is_spare = self.queue.is_empty() && self.idle.len() >= max_idle;
        let why = if self.is_closing {
            Some(CloseReason::Shut)
        } else if let Wear::WornOut(why) = wear {
            Some(why)
        } else {
            (is_over || is_spare).then_some(CloseReason::Limit)
        };
        match place {
            Place::Idle => {
                prop_assert!(why.is_none() && self.queue.is_empty());
                self.idle.insert(number);
            }
            Place::Hand(caller, conn, checkout) => {
                let handed = conn.number;
                self.in_use.push((conn, checkout));
                prop_assert_eq!(handed, number);
                let first = self.next_caller(is_new);
                prop_assert_eq!(Some(caller), first, "each has its turn");
                prop_assert!(self.served_before.1 <= 5, "the caller that has waited for longest starves");
                prop_assert!(why.is_none());
            }
            Place::Close(closing) => {
                let closed = closing.conn.number;
                self.quarantined.push((Some(closing.conn), closing.quarantined));
                prop_assert_eq!(closed, number);
                prop_assert_eq!(Some(closing.why), why, "closed without its reason");
            }
        }
        Ok(())
    }

    fn lost(&mut self, conn: &Conn, at_server: AtServer, loss: Loss<Conn, Caller>) -> Outcome {
        let has_orphan = loss.orphan.is_some();
        self.quarantined.extend(loss.orphan.map(|orphan| (None, orphan)));
        let is_news = conn.generation == self.generation;
        self.generation += u64::from(is_news);
        let left = if is_news { 0 } else { self.idle.len() };
        self.perform(loss.actions, None)?;
        prop_assert_eq!(has_orphan, at_server == AtServer::Statement);
        prop_assert_eq!(loss.is_news, is_news);
        prop_assert_eq!(self.idle.len(), left, "all idle connections are verified, once");
        Ok(())
    }

    /// What is closed is closed for this reason; nothing is closed without one.
    fn perform(&mut self, actions: Actions<Conn, Caller>, why: Option<CloseReason>) -> Outcome {
        let is_named = actions.close.iter().all(|closing| Some(closing.why) == why);
        self.carry_out(actions)?;
        prop_assert!(is_named, "closed for another reason than {:?}", why);
        Ok(())
    }

    fn carry_out(&mut self, actions: Actions<Conn, Caller>) -> Outcome {
        let Actions { close, verify, refuse, dial } = actions;
        let mut were_idle = true;
        let close = close.into_iter().map(|closing| (closing.conn, closing.quarantined));
        for (conn, quarantined) in close.chain(verify) {
            were_idle &= self.idle.remove(&conn.number);
            self.quarantined.push((Some(conn), quarantined));
        }
        self.begun(dial)?;
        prop_assert!(were_idle, "taken out of use, but was not idle");
        prop_assert!(refuse.is_empty());
        Ok(())
    }

    fn refused(&mut self, refused: &[Caller]) -> Outcome {
        let waiting: Vec<_> = self.queue.drain(..).map(|waiter| waiter.caller).collect();
        prop_assert_eq!(refused, waiting, "all callers are refused, in their order");
        Ok(())
    }

    /// Records started dials.
    fn begun(&mut self, dials: Vec<Dialling>) -> Outcome {
        if dials.is_empty() {
            return Ok(());
        }
        self.dialling.extend(dials);
        prop_assert!(!self.is_closing && !self.is_asleep);
        prop_assert!(self.claimed() <= self.limit(), "dials above the limit");
        prop_assert!(self.sum() <= self.limit() + EXTRA as usize, "dials above the limit and the extra");
        let wanted = self.queue.len().max(self.limits.min_idle as usize);
        prop_assert!(self.dialling.len() <= wanted, "more dials than wanted");
        Ok(())
    }

    /// Checks that no idle connection is above the limits.
    fn is_trimmed(&self) -> Outcome {
        let max_idle = self.limits.max_idle.unwrap_or(u32::MAX).max(self.limits.min_idle) as usize;
        prop_assert!(self.idle.len() <= max_idle);
        prop_assert!(self.idle.is_empty() || self.in_use.len() + self.idle.len() <= self.limit());
        Ok(())
    }

    fn dials_enough_for_min_idle(&self) -> Outcome {
        if self.is_closing || self.is_asleep || self.server == Server::Refuses {
            return Ok(());
        }
        let soon = self.idle.len() + self.quarantined.len() - self.slow();
        self.dials_at_least((self.limits.min_idle as usize).saturating_sub(soon).max(self.queue.len()))
    }

    fn dials_at_least(&self, wanted: usize) -> Outcome {
        let room = self.limit().saturating_sub(self.claimed() - self.dialling.len());
        let wanted = if self.server == Server::Answers { wanted } else { wanted.min(1) };
        prop_assert!(self.dialling.len() >= wanted.min(room), "a wanted dial was not started");
        Ok(())
    }

    /// Checks what must hold after each event.
    fn agree(&self) -> Outcome {
        let counts = Counts {
            open: u32::try_from(self.dialled - self.closed).expect("few"),
            idle: u32::try_from(self.idle.len()).expect("few"),
            in_use: u32::try_from(self.in_use.len()).expect("few"),
            repairing: u32::try_from(self.quarantined.len()).expect("few"),
            dialling: u32::try_from(self.dialling.len()).expect("few"),
            waiting: u32::try_from(self.queue.len()).expect("few"),
        };
        prop_assert_eq!(self.state.counts(), counts);
        prop_assert_eq!(counts.open, counts.idle + counts.in_use + counts.repairing);
        prop_assert!(self.state.is_consistent());
        let out = self.in_use.len() + self.quarantined.len() + self.dialling.len();
        prop_assert!(
            self.queue.is_empty() || self.idle.is_empty(),
            "a caller waits beside an idle connection"
        );
        prop_assert!(self.queue.is_empty() || out > 0, "a caller waits for nothing");
        prop_assert!(!self.is_closing || self.queue.is_empty() && self.idle.is_empty());
        if self.server == Server::Answers && !self.is_closing {
            self.dials_at_least(self.queue.len())?;
        }
        Ok(())
    }

    /// Serves every caller, then closes the pool, and checks that nothing is left.
    fn finish(&mut self) -> Outcome {
        let usable = Wear::Usable;
        for _ in 0..=4 * self.queue.len() + 4 {
            for event in
                [Event::Dialled(0), Event::Readmit(0, usable), Event::Release(0), Event::GiveBack(0, usable)]
            {
                self.step(&event)?;
            }
        }
        prop_assert_eq!(self.queue.len(), 0, "callers are still waiting");
        self.step(&Event::Close)?;
        while self.sum() > 0 {
            let before = self.sum();
            for event in [Event::Dialled(0), Event::GiveBack(0, usable), Event::Release(0)] {
                self.step(&event)?;
            }
            prop_assert!(self.sum() < before, "a closing pool does not become empty");
        }
        prop_assert!(self.state.is_empty());
        prop_assert_eq!(self.dialled, self.closed);
        Ok(())
    }
}

fn picked(pick: usize, from: usize) -> Option<usize> {
    (from > 0).then(|| pick % from)
}

fn remove<T>(from: &mut Vec<T>, pick: usize) -> Option<T> {
    picked(pick, from.len()).map(|pick| from.remove(pick))
}

/// One of three workers.
fn worker(number: u64) -> Worker {
    Worker::numbered(usize::try_from(number % 3).expect("small"))
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn every_sequence_of_events_keeps_the_rules_of_the_pool() {
    let seed = from_environment("POOL_MODEL_SEED").unwrap_or_else(|| fastrand::u64(..));
    let steps = from_environment("POOL_MODEL_STEPS").unwrap_or(100_000u64);
    // The number of events before the first failure. Later runs only shrink the list.
    let (taken, has_passed) = (Cell::new(0u64), Cell::new(true));
    let is_first = Cell::new(true);
    let run = |(limits, is_asleep, events): (Limits, bool, Vec<Event>)| {
        if !has_passed.replace(false) {
            is_first.set(false);
        }
        let mut model = Model::new(limits, is_asleep);
        for event in &events {
            taken.set(taken.get() + u64::from(is_first.get()));
            model.step(event)?;
        }
        model.finish()?;
        has_passed.set(true);
        Ok(())
    };
    let mut random = fastrand::Rng::with_seed(seed);
    while taken.get() < steps {
        let mut bytes = [0; 32];
        random.fill(&mut bytes);
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
        let config =
            Config { cases: 20, failure_persistence: None, max_shrink_iters: 5_000, ..Config::default() };
        let outcome = TestRunner::new_with_rng(config, rng).run(&(limits(), any::<bool>(), events()), run);
        if let Err(error) = outcome {
            panic!("POOL_MODEL_SEED={seed} fails at event {}: {error}", taken.get());
        }
    }
}
