//! The promises of a link, and of a bus on it, checked on PostgreSQL, on a `Script` of the test kit and on `MemoryLink`. So a test that
//! uses one of them proves something about the others.

use std::pin::pin;
use std::time::Duration;

use db_notify::link::{Link, Listener, Sender};
use db_notify::{
    Bus, BusOptions, Delivery, GapReason, MemoryLink, NotificationSource, NotifyError, Topic, Trouble,
};
use db_testkit::{TestDb, poll_then_drop, until};
use futures_util::FutureExt;
use tokio::time::timeout;

use crate::support::{PATIENCE, Place, Scripted, Server, channel, gap, next, payload, topic};

/// Makes three tests of each fact. Those on `MemoryLink` run in paused time.
macro_rules! on_each {
    ($($fact:ident),+ $(,)?) => {
        mod on_postgresql {
            use super::*;

            $(
                #[db_testkit::test]
                async fn $fact(db: TestDb) {
                    super::$fact(Server::of(db)).await;
                }
            )+
        }

        mod on_a_script {
            use super::*;

            $(
                #[tokio::test]
                async fn $fact() {
                    super::$fact(Scripted::start()).await;
                }
            )+
        }

        mod in_memory {
            use super::*;

            $(
                #[tokio::test(start_paused = true)]
                async fn $fact() {
                    super::$fact(MemoryLink::new()).await;
                }
            )+
        }
    };
}

on_each! {
    notifications_after_listen_arrive_once_and_in_order,
    notifications_before_listen_do_not_arrive,
    notifications_after_unlisten_do_not_arrive,
    notifications_that_arrived_before_unlisten_are_received,
    a_channel_that_is_added_twice_delivers_once,
    equal_payloads_arrive_once_for_each_statement,
    every_listener_of_a_channel_receives_and_those_of_another_do_not,
    a_payload_of_7999_bytes_arrives,
    debug_output_has_no_payload,
    a_refused_payload_makes_the_whole_statement_fail,
    the_names_of_channels_neither_fold_nor_collide,
    a_recv_dropped_at_any_poll_loses_nothing,
    a_ping_returns_the_queue_usage_and_loses_nothing,
    an_ended_session_fails_every_request_and_never_reconnects,
    notifications_that_arrived_before_the_end_of_a_session_are_received,
    a_session_cut_before_its_statement_notifies_nothing,
    a_session_cut_instead_of_the_answer_has_notified,
    a_session_in_a_black_hole_neither_answers_nor_fails,
    a_session_in_a_black_hole_does_not_notice_its_end,
    no_session_can_be_opened_while_the_server_is_away,
    closing_or_dropping_a_session_ends_it,
    opening_a_session_dropped_at_any_poll_leaves_none,
    topics_of_one_subscription_arrive_in_the_order_of_sending,
    a_bus_receives_its_own_notifications_and_tells_topics_apart,
    namespaces_are_separate,
    a_channel_delivers_after_its_first_gap,
    notifications_of_a_dropped_channel_do_not_reach_other_subscriptions,
    a_program_can_listen_to_the_channel_of_the_bus,
    a_lost_session_delivers_a_gap_to_every_subscription_and_then_notifications,
    a_statement_without_an_answer_is_sent_again,
    the_heartbeat_notices_a_silent_session,
    a_full_queue_counts_what_it_has_missed,
    the_message_everything_is_one_gap_for_each_subscription,
    past_its_size_the_outbox_sends_everything,
    an_unknown_form_is_a_gap_for_each_subscription,
    the_longest_payload_arrives_and_the_call_refuses_a_longer_one,
    closing_sends_what_waits_and_leaves_no_session,
    dropping_the_last_handle_ends_subscriptions_and_sessions,
    a_lazy_bus_opens_no_session_before_its_first_use,
    notifications_wait_while_the_server_is_away_and_are_sent_when_it_is_back,
    equal_notifications_that_wait_together_are_counted_once,
    the_state_shows_the_session_and_its_loss,
}

async fn listener<P: Place>(place: &P, channels: &[&str]) -> <P::Link as Link>::Listener {
    let mut listener = place.link().listener().await.expect("a session that listens");
    let channels: Vec<_> = channels.iter().map(|name| channel(name)).collect();
    listener.listen(&channels).await.expect("listens");
    listener
}

async fn sender<P: Place>(place: &P) -> <P::Link as Link>::Sender {
    place.link().sender().await.expect("a session that sends")
}

async fn say(sender: &mut impl Sender, on: &str, payloads: &[&str]) {
    let payloads: Vec<_> = payloads.iter().map(ToString::to_string).collect();
    sender.notify(&channel(on), &payloads).await.expect("sent");
}

/// The next channel and payload.
async fn hear(listener: &mut impl Listener) -> (String, String) {
    let arrived = timeout(PATIENCE, listener.recv()).await.expect("in time").expect("a notification");
    (arrived.channel().to_owned(), arrived.payload().to_owned())
}

async fn said(listener: &mut impl Listener) -> String {
    hear(listener).await.1
}

async fn open<P: Place>(place: &P) -> Bus {
    Bus::with_link(place.link(), BusOptions::default()).await.expect("a bus")
}

async fn notifications_after_listen_arrive_once_and_in_order(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);

    say(&mut sender, "a", &["1", "2", "3"]).await;
    say(&mut sender, "a", &[""]).await;
    say(&mut sender, "a", &[]).await;
    say(&mut sender, "a", &["ü 🦀"]).await;

    for expected in ["1", "2", "3", "", "ü 🦀"] {
        assert_eq!(hear(&mut heard).await, ("a".to_owned(), expected.to_owned()));
    }
}

async fn notifications_before_listen_do_not_arrive(place: impl Place) {
    let mut sender = sender(&place).await;
    let mut new = listener(&place, &[]).await;
    let mut old = listener(&place, &["other"]).await;

    say(&mut sender, "a", &["before"]).await;
    for heard in [&mut new, &mut old] {
        heard.listen(&[channel("a")]).await.expect("listens");
    }
    say(&mut sender, "a", &["after"]).await;

    assert_eq!(said(&mut new).await, "after");
    assert_eq!(said(&mut old).await, "after");
}

async fn notifications_after_unlisten_do_not_arrive(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a", "b", "c"]).await, sender(&place).await);

    heard.unlisten(&[channel("a"), channel("b"), channel("never")]).await.expect("unlistens");
    say(&mut sender, "a", &["1"]).await;
    say(&mut sender, "b", &["2"]).await;
    say(&mut sender, "c", &["3"]).await;
    assert_eq!(hear(&mut heard).await, ("c".to_owned(), "3".to_owned()));

    heard.listen(&[channel("a")]).await.expect("listens");
    say(&mut sender, "a", &["4"]).await;
    assert_eq!(said(&mut heard).await, "4");
}

async fn notifications_that_arrived_before_unlisten_are_received(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    say(&mut sender, "a", &["1"]).await;
    // The notification comes before the answer.
    heard.ping().await.expect("an answer");

    heard.unlisten(&[channel("a")]).await.expect("unlistens");

    assert_eq!(said(&mut heard).await, "1");
}

async fn a_channel_that_is_added_twice_delivers_once(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a", "a"]).await, sender(&place).await);
    heard.listen(&[channel("b"), channel("a")]).await.expect("listens");

    say(&mut sender, "a", &["1"]).await;
    say(&mut sender, "b", &["2"]).await;
    assert_eq!([said(&mut heard).await, said(&mut heard).await], ["1", "2"]);

    heard.unlisten(&[channel("a")]).await.expect("unlistens");
    say(&mut sender, "a", &["3"]).await;
    say(&mut sender, "b", &["4"]).await;
    assert_eq!(said(&mut heard).await, "4", "once is enough to leave it");
}

async fn equal_payloads_arrive_once_for_each_statement(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a", "b"]).await, sender(&place).await);

    say(&mut sender, "a", &["same", "other", "same"]).await;
    say(&mut sender, "a", &["same"]).await;
    say(&mut sender, "b", &["same"]).await;

    for expected in [("a", "same"), ("a", "other"), ("a", "same"), ("b", "same")] {
        let (on, payload) = hear(&mut heard).await;
        assert_eq!((&*on, &*payload), expected);
    }
}

async fn every_listener_of_a_channel_receives_and_those_of_another_do_not(place: impl Place) {
    let mut all = [listener(&place, &["a"]).await, listener(&place, &["b", "a"]).await];
    let mut other = listener(&place, &["b"]).await;
    let mut senders = [sender(&place).await, sender(&place).await];

    for (sender, payload) in senders.iter_mut().zip(["1", "2"]) {
        say(sender, "a", &[payload]).await;
    }
    say(&mut senders[0], "b", &["3"]).await;

    for heard in &mut all {
        assert_eq!([said(heard).await, said(heard).await], ["1", "2"]);
    }
    assert_eq!(said(&mut other).await, "3");
}

async fn a_payload_of_7999_bytes_arrives(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    let longest = format!("ü{}", "x".repeat(7997));

    say(&mut sender, "a", &[&longest]).await;

    assert_eq!(said(&mut heard).await, longest);
}

async fn debug_output_has_no_payload(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    say(&mut sender, "a", &["the payload"]).await;

    let arrived = timeout(PATIENCE, heard.recv()).await.expect("in time").expect("a notification");

    assert_eq!(format!("{arrived:?}"), "RawNotification { channel: \"a\", bytes: 11 }");
}

async fn a_refused_payload_makes_the_whole_statement_fail(place: impl Place) {
    let mut heard = listener(&place, &["a"]).await;

    for bad in ["x".repeat(8000), format!("ü{}", "x".repeat(7998)), "a\0b".to_owned()] {
        let mut refused = sender(&place).await;
        let payloads = ["good".to_owned(), bad, "better".to_owned()];
        refused.notify(&channel("a"), &payloads).await.expect_err("refused");
    }

    say(&mut sender(&place).await, "a", &["after"]).await;
    assert_eq!(said(&mut heard).await, "after");
}

async fn the_names_of_channels_neither_fold_nor_collide(place: impl Place) {
    let long = "x".repeat(62);
    let names = [
        "jobs",
        "Jobs",
        "JOBS",
        "jobs ",
        " jobs",
        "a b",
        "it's",
        "\"",
        "\"\"",
        "\"jobs\"",
        "a;b",
        "--",
        "$$",
        "a$$b",
        "\\",
        "%",
        "*",
        "\n",
        "Straße",
        "STRASSE",
        "🦀",
        "e\u{301}",
        "é",
        &format!("{long}1"),
        &format!("{long}2"),
        &format!("{}z", "ü".repeat(31)),
    ];
    let mut alone = Vec::new();
    for name in names {
        alone.push(listener(&place, &[name]).await);
    }
    let mut all = listener(&place, &names).await;
    let mut sender = sender(&place).await;

    for name in names {
        say(&mut sender, name, &["1"]).await;
    }

    for (name, heard) in names.iter().zip(&mut alone) {
        assert_eq!(hear(&mut all).await, ((*name).to_owned(), "1".to_owned()));
        assert_eq!(hear(heard).await.0, *name);
        // Other notifications would have come before the answer.
        heard.ping().await.expect("an answer");
        assert!(heard.recv().now_or_never().is_none(), "{name:?} heard another one");
    }
}

async fn a_recv_dropped_at_any_poll_loses_nothing(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    let long = "x".repeat(7000);

    for polls in 0..5 {
        let payloads: Vec<String> = (0..20).map(|n| format!("{polls}.{n}.{long}")).collect();
        let payloads: Vec<&str> = payloads.iter().map(String::as_str).collect();
        say(&mut sender, "a", &payloads).await;
        let mut received = Vec::new();
        // Each time dropped after `polls` polls, and every other time received to its end.
        while received.len() < payloads.len() {
            let cut_off = poll_then_drop(heard.recv(), polls).await;
            match cut_off {
                Some(arrived) => received.push(arrived.expect("a notification").payload().to_owned()),
                None => received.push(said(&mut heard).await),
            }
        }
        assert!(received.iter().eq(payloads.iter()), "dropped after {polls} polls");
    }
}

async fn a_ping_returns_the_queue_usage_and_loses_nothing(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);

    for payload in ["1", "2"] {
        say(&mut sender, "a", &[payload]).await;
        let usage = heard.ping().await.expect("an answer");
        assert!((0.0..=1.0).contains(&usage), "{usage}");
    }

    assert_eq!([said(&mut heard).await, said(&mut heard).await], ["1", "2"]);
}

/// The requests of a session that listens.
const QUESTIONS: [&str; 4] = ["recv", "ping", "listen", "unlisten"];

async fn ask(listener: &mut impl Listener, question: &str) -> Result<(), sqlx::Error> {
    let answer = async {
        match question {
            "recv" => listener.recv().await.map(drop),
            "ping" => listener.ping().await.map(drop),
            "listen" => listener.listen(&[channel("b")]).await,
            _ => listener.unlisten(&[channel("a")]).await,
        }
    };
    timeout(PATIENCE, answer).await.unwrap_or_else(|_| panic!("{question} did not return"))
}

async fn an_ended_session_fails_every_request_and_never_reconnects(place: impl Place) {
    let mut listeners = Vec::new();
    for question in QUESTIONS {
        listeners.push((question, listener(&place, &["a"]).await));
    }
    let mut sender = sender(&place).await;
    place.until_sessions(QUESTIONS.len() + 1).await;

    place.cut().await;

    for (first, listener) in &mut listeners {
        ask(listener, first).await.expect_err(first);
        for question in QUESTIONS.into_iter().chain(["recv"]) {
            assert!(ask(listener, question).await.is_err(), "{question} after {first}");
        }
    }
    for _ in 0..2 {
        let sent = timeout(PATIENCE, sender.notify(&channel("a"), &["1".to_owned()])).await;
        sent.expect("in time").expect_err("sent");
    }
    place.until_sessions(0).await;
}

async fn notifications_that_arrived_before_the_end_of_a_session_are_received(place: impl Place) {
    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    say(&mut sender, "a", &["1", "2"]).await;
    heard.ping().await.expect("an answer");

    place.cut().await;

    assert_eq!([said(&mut heard).await, said(&mut heard).await], ["1", "2"]);
    ask(&mut heard, "recv").await.expect_err("it was ended");
}

async fn a_session_cut_before_its_statement_notifies_nothing(place: impl Place) {
    let (mut heard, mut cut) = (listener(&place, &["the channel"]).await, sender(&place).await);
    say(&mut cut, "the channel", &["1"]).await;

    place.cut_before_notify("the channel");

    for payload in ["2", "3"] {
        cut.notify(&channel("the channel"), &[payload.to_owned()]).await.expect_err(payload);
    }
    say(&mut sender(&place).await, "the channel", &["4"]).await;
    assert_eq!([said(&mut heard).await, said(&mut heard).await], ["1", "4"]);
}

async fn a_session_cut_instead_of_the_answer_has_notified(place: impl Place) {
    let (mut heard, mut cut) = (listener(&place, &["the channel"]).await, sender(&place).await);
    say(&mut cut, "the channel", &["1"]).await;

    place.cut_answer_to_notify("the channel");

    for payload in ["2", "3"] {
        cut.notify(&channel("the channel"), &[payload.to_owned()]).await.expect_err(payload);
    }
    say(&mut sender(&place).await, "the channel", &["4"]).await;
    assert_eq!([said(&mut heard).await, said(&mut heard).await, said(&mut heard).await], ["1", "2", "4"]);
}

async fn a_session_in_a_black_hole_neither_answers_nor_fails(place: impl Place) {
    let mut silent = listener(&place, &["a"]).await;
    let mut asked = listener(&place, &["a"]).await;
    let mut dumb = sender(&place).await;

    place.black_hole();

    let mut well = listener(&place, &["a"]).await;
    let mut sender = sender(&place).await;
    let payloads = ["into the hole".to_owned()];
    let on = channel("a");
    let (mut recv, mut ping, mut notify) =
        (pin!(silent.recv()), pin!(asked.ping()), pin!(dumb.notify(&on, &payloads)));
    for payload in ["1", "2", "3"] {
        assert!(recv.as_mut().now_or_never().is_none(), "heard");
        assert!(ping.as_mut().now_or_never().is_none(), "answered");
        assert!(notify.as_mut().now_or_never().is_none(), "sent");
        say(&mut sender, "a", &[payload]).await;
        assert_eq!(said(&mut well).await, payload, "new ones are well");
    }
}

async fn a_session_in_a_black_hole_does_not_notice_its_end(place: impl Place) {
    let mut silent = listener(&place, &["a"]).await;
    let mut asked = listener(&place, &["a"]).await;
    place.black_hole();
    let mut well = listener(&place, &["a"]).await;

    place.cut().await;

    ask(&mut well, "recv").await.expect_err("this one is");
    let (mut recv, mut ping) = (pin!(silent.recv()), pin!(asked.ping()));
    for _ in 0..3 {
        assert!(recv.as_mut().now_or_never().is_none(), "told");
        assert!(ping.as_mut().now_or_never().is_none(), "told");
        listener(&place, &["a"]).await.ping().await.expect("new ones are well");
    }
}

async fn no_session_can_be_opened_while_the_server_is_away(place: impl Place) {
    let mut lost = listener(&place, &["a"]).await;
    let link = place.link();

    place.stop();

    ask(&mut lost, "recv").await.expect_err("it was ended");
    for _ in 0..2 {
        let Err(error) = link.listener().await else { panic!("it listens") };
        assert!(!link.explain(&error).is_final(), "waiting may mend it: {error}");
        let Err(error) = link.sender().await else { panic!("it sends") };
        assert!(!link.explain(&error).is_final(), "waiting may mend it: {error}");
    }

    place.start();

    let (mut heard, mut sender) = (listener(&place, &["a"]).await, sender(&place).await);
    say(&mut sender, "a", &["1"]).await;
    assert_eq!(said(&mut heard).await, "1");
}

async fn closing_or_dropping_a_session_ends_it(place: impl Place) {
    let (heard, sends) = (listener(&place, &["a"]).await, sender(&place).await);
    place.until_sessions(2).await;
    heard.close().await;
    place.until_sessions(1).await;
    sends.close().await;
    place.until_sessions(0).await;

    let (heard, sends) = (listener(&place, &["a"]).await, sender(&place).await);
    drop(heard);
    place.until_sessions(1).await;
    drop(sends);
    place.until_sessions(0).await;
}

async fn opening_a_session_dropped_at_any_poll_leaves_none(place: impl Place) {
    let link = place.link();
    for polls in 0.. {
        if let Some(opened) = poll_then_drop(link.listener(), polls).await {
            opened.expect("a session").close().await;
            break;
        }
    }
    for polls in 0.. {
        if let Some(opened) = poll_then_drop(link.sender(), polls).await {
            opened.expect("a session").close().await;
            break;
        }
    }
    place.until_sessions(0).await;
}

async fn topics_of_one_subscription_arrive_in_the_order_of_sending(place: impl Place) {
    let (here, there) = (open(&place).await, open(&place).await);
    let topics = [topic("a"), topic("b"), topic("c")];
    let mut many = there.subscribe_all(&topics[..2], 100);

    for n in 0..30 {
        here.notify_soon_with(&topics[n % 3], &n.to_string()).expect("accepted");
    }
    here.notify_with(&topics[0], "last").await.expect("sent");

    let (mut seen, mut expected) = (Vec::new(), Vec::new());
    for n in (0..30).filter(|n| n % 3 < 2) {
        expected.push((Some(topics[n % 3].clone()), n.to_string()));
    }
    while seen.len() < expected.len() {
        let Delivery::Notification(notification) = next(&mut many).await else { panic!("a gap") };
        seen.push((notification.topic().cloned(), notification.payload().to_owned()));
    }
    assert_eq!(seen, expected);
    assert_eq!(payload(&mut many).await, "last");
}

async fn a_bus_receives_its_own_notifications_and_tells_topics_apart(place: impl Place) {
    let (here, there) = (open(&place).await, open(&place).await);
    let odd = topic("Straße 'x\"; $$ 🦀\n");
    let subscribe = |bus: &Bus| [bus.subscribe(&topic("orders"), 10), bus.subscribe(&odd, 10)];
    let both = [subscribe(&here), subscribe(&there)];

    here.notify_with(&topic("orders"), "paid").await.expect("sent");
    here.notify_with(&topic("Orders"), "another topic").await.expect("sent");
    here.notify_with(&odd, "ü").await.expect("sent");
    here.notify(&topic("orders")).await.expect("sent");

    for [mut orders, mut strange] in both {
        assert_eq!(payload(&mut orders).await, "paid");
        assert_eq!(payload(&mut strange).await, "ü");
        assert_eq!(payload(&mut orders).await, "");
    }
}

async fn namespaces_are_separate(place: impl Place) {
    let ours = open(&place).await;
    let options = BusOptions::default().namespace("other's");
    let theirs = Bus::with_link(place.link(), options).await.expect("a bus");
    let mut subscription = ours.subscribe(&topic("t"), 10);

    theirs.notify_with(&topic("t"), "theirs").await.expect("sent");
    ours.notify_with(&topic("t"), "ours").await.expect("sent");

    assert_eq!(payload(&mut subscription).await, "ours");
}

async fn a_channel_delivers_after_its_first_gap(place: impl Place) {
    let bus = open(&place).await;
    let mut other_program = sender(&place).await;
    let jobs = channel("Jobs 🦀");

    for round in ["first", "again"] {
        let mut raw = bus.listen(&jobs, 10);
        assert_eq!(bus.state().channels, 1);
        assert_eq!(gap(&mut raw).await, GapReason::Started);
        say(&mut other_program, "Jobs 🦀", &[round]).await;

        let Delivery::Notification(notification) = next(&mut raw).await else { panic!("a gap") };
        assert_eq!(notification.source(), &NotificationSource::Channel(jobs.clone()));
        assert_eq!(notification.payload(), round);

        place.cut().await;
        assert_eq!(gap(&mut raw).await, GapReason::Reconnected);
        other_program = sender(&place).await;
        say(&mut other_program, "Jobs 🦀", &["after"]).await;
        assert_eq!(payload(&mut raw).await, "after");
        drop(raw);
        assert_eq!(bus.state().channels, 0);
    }
}

async fn notifications_of_a_dropped_channel_do_not_reach_other_subscriptions(place: impl Place) {
    let bus = open(&place).await;
    let mut other_program = sender(&place).await;
    let mut orders = bus.subscribe(&topic("orders"), 100);

    // Each time, the task may handle the notification or the change of channels first.
    for _ in 0..30 {
        let mut raw = bus.listen(&channel("jobs"), 10);
        assert_eq!(gap(&mut raw).await, GapReason::Started);
        say(&mut other_program, "jobs", &["not the form of a bus"]).await;
        drop(raw);
        bus.notify_with(&topic("orders"), "paid").await.expect("sent");
        assert_eq!(payload(&mut orders).await, "paid");
    }
    assert_eq!(bus.state().gaps, 0);
}

async fn a_program_can_listen_to_the_channel_of_the_bus(place: impl Place) {
    let bus = open(&place).await;
    let mut raw = bus.listen(&channel("db_notify.default"), 10);
    let mut orders = bus.subscribe(&topic("orders"), 10);
    assert_eq!(gap(&mut raw).await, GapReason::Started);

    bus.notify_with(&topic("orders"), "paid").await.expect("sent");
    assert_eq!(payload(&mut raw).await, "16:4:orderspaid");
    assert_eq!(payload(&mut orders).await, "paid");

    drop(raw);
    let mut other = bus.listen(&channel("other"), 10);
    assert_eq!(gap(&mut other).await, GapReason::Started, "what nobody wants is no longer listened to");
    bus.notify_with(&topic("orders"), "sent").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "sent", "the bus's own is");
}

async fn a_lost_session_delivers_a_gap_to_every_subscription_and_then_notifications(place: impl Place) {
    let bus = open(&place).await;
    let topics = [topic("a"), topic("b")];
    let mut subscriptions = topics.each_ref().map(|topic| bus.subscribe(topic, 10));

    for round in 1..=3 {
        place.cut().await;

        for (subscription, topic) in subscriptions.iter_mut().zip(&topics) {
            assert_eq!(gap(subscription).await, GapReason::Reconnected);
            // LISTEN is in force after the gap: no notification sent from here on is lost.
            bus.notify_with(topic, "after").await.expect("sent");
            assert_eq!(payload(subscription).await, "after");
        }
        assert_eq!(bus.state().gaps, round);
        assert!(bus.state().is_connected());
    }
}

async fn a_statement_without_an_answer_is_sent_again(place: impl Place) {
    let bus = open(&place).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    bus.notify_with(&topic("t"), "1").await.expect("sent");

    place.cut_before_notify("db_notify.default");
    bus.notify_with(&topic("t"), "2").await.expect("sent");
    place.cut_answer_to_notify("db_notify.default");
    bus.notify_with(&topic("t"), "3").await.expect("sent");
    bus.notify_with(&topic("t"), "4").await.expect("sent");

    for expected in ["1", "2", "3", "3", "4"] {
        assert_eq!(payload(&mut subscription).await, expected);
    }
    assert_eq!((bus.state().sent, bus.state().gaps), (4, 0));
}

async fn the_heartbeat_notices_a_silent_session(place: impl Place) {
    let options = BusOptions::default().heartbeat(Duration::from_millis(100)).answer(Duration::from_secs(1));
    let bus = Bus::with_link(place.link(), options).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("t"), 10);
    until("it was asked", async || bus.state().last_heartbeat.is_some()).await;

    place.black_hole();
    bus.notify_soon_with(&topic("t"), "into the hole").expect("accepted");

    assert_eq!(gap(&mut subscription).await, GapReason::Reconnected);
    bus.notify_with(&topic("t"), "after").await.expect("sent");
    while payload(&mut subscription).await != "after" {}
}

async fn a_full_queue_counts_what_it_has_missed(place: impl Place) {
    let bus = open(&place).await;
    let mut slow = bus.subscribe(&topic("t"), 2);
    let mut quick = bus.subscribe(&topic("t"), 100);
    for n in 0..10 {
        bus.notify_soon_with(&topic("t"), &n.to_string()).expect("accepted");
    }
    for n in 0..10 {
        assert_eq!(payload(&mut quick).await, n.to_string());
    }

    assert_eq!([payload(&mut slow).await, payload(&mut slow).await], ["0", "1"]);
    let Delivery::Gap(lagged) = next(&mut slow).await else { panic!("no gap") };
    assert_eq!((lagged.reason, lagged.missed), (GapReason::Lagged, Some(8)));
    assert_eq!((bus.state().lagged, bus.state().gaps), (8, 0), "only the slow one was told");

    bus.notify_with(&topic("t"), "after").await.expect("sent");
    assert_eq!(payload(&mut slow).await, "after");
}

async fn the_message_everything_is_one_gap_for_each_subscription(place: impl Place) {
    let buses = [open(&place).await, open(&place).await];
    let mut subscriptions: Vec<_> =
        buses.iter().flat_map(|bus| [bus.subscribe(&topic("a"), 2), bus.subscribe(&topic("b"), 2)]).collect();

    say(&mut sender(&place).await, "db_notify.default", &["1*"]).await;
    for name in ["a", "b"] {
        buses[0].notify_with(&topic(name), "after").await.expect("sent");
    }

    for subscription in &mut subscriptions {
        assert_eq!(gap(subscription).await, GapReason::Overflow);
        assert_eq!(payload(subscription).await, "after");
    }
    assert_eq!(buses.map(|bus| bus.state().gaps), [1, 1]);
}

async fn past_its_size_the_outbox_sends_everything(place: impl Place) {
    let options = BusOptions::default().queue(1000);
    let bus = Bus::with_link(place.link(), options).await.expect("a bus");
    let mut subscription = bus.subscribe(&topic("other"), 1);
    place.stop();
    until_taken(&bus).await;

    for n in 0..1000 {
        bus.notify_soon_with(&topic("t"), &n.to_string()).expect("accepted");
    }
    assert_eq!((bus.state().pending, bus.state().coalesced), (1000, 0));
    for n in 1000..1005 {
        bus.notify_soon_with(&topic("t"), &n.to_string()).expect("accepted");
    }
    assert_eq!((bus.state().pending, bus.state().coalesced), (1, 1004));

    place.start();
    until("both are sent", async || bus.state().sent == 2).await;
    // Subscribers have received a gap, or will receive one when LISTEN is in force.
    gap(&mut subscription).await;
}

/// Makes the notifier try to send a notification, so that later ones gather in the outbox.
async fn until_taken(bus: &Bus) {
    bus.notify_soon_with(&topic("t"), "first").expect("accepted");
    until("it tries to send", async || bus.state().pending == 0).await;
}

async fn an_unknown_form_is_a_gap_for_each_subscription(place: impl Place) {
    let bus = open(&place).await;
    let mut subscriptions = [bus.subscribe(&topic("a"), 2), bus.subscribe(&topic("b"), 2)];

    say(&mut sender(&place).await, "db_notify.default", &["9 of a later version"]).await;

    for subscription in &mut subscriptions {
        assert_eq!(gap(subscription).await, GapReason::Unreadable);
    }
}

async fn the_longest_payload_arrives_and_the_call_refuses_a_longer_one(place: impl Place) {
    let bus = open(&place).await;
    let long = topic(&"t".repeat(Topic::MAX_BYTES));
    let mut subscription = bus.subscribe(&long, 10);
    let Err(NotifyError::TooLong { limit, .. }) = bus.notify_with(&long, &"x".repeat(8000)).await else {
        panic!("8000 bytes were not refused")
    };
    assert_eq!(bus.notify_with(&long, "a\0b").await, Err(NotifyError::Nul));

    bus.notify_with(&long, &"x".repeat(limit)).await.expect("sent");

    assert_eq!(payload(&mut subscription).await.len(), limit);
}

async fn closing_sends_what_waits_and_leaves_no_session(place: impl Place) {
    let (closing, other) = (open(&place).await, open(&place).await);
    let mut ours = closing.subscribe(&topic("ours"), 10);
    let mut others = other.subscribe(&topic("t"), 10);
    closing.notify_soon_with(&topic("t"), "last").expect("accepted");

    assert!(closing.close(PATIENCE).await, "in time");

    assert_eq!(payload(&mut others).await, "last");
    assert_eq!(timeout(PATIENCE, ours.recv()).await.expect("in time"), None);
    assert_eq!(closing.notify_with(&topic("t"), "too late").await, Err(NotifyError::Closed));
    assert_eq!(closing.notify_soon(&topic("t")), Err(NotifyError::Closed));
    assert!(closing.close(PATIENCE).await, "asked again");
    place.until_sessions(2).await;
    assert!(other.close(PATIENCE).await, "in time");
    place.until_sessions(0).await;
}

async fn dropping_the_last_handle_ends_subscriptions_and_sessions(place: impl Place) {
    let bus = open(&place).await;
    let clone = bus.clone();
    let mut subscription = bus.subscribe(&topic("t"), 1);
    drop(bus);
    clone.notify_with(&topic("t"), "still there").await.expect("sent");
    assert_eq!(payload(&mut subscription).await, "still there");

    drop(clone);

    assert_eq!(timeout(PATIENCE, subscription.recv()).await.expect("in time"), None);
    place.until_sessions(0).await;
}

async fn a_lazy_bus_opens_no_session_before_its_first_use(place: impl Place) {
    let heard = open(&place).await;
    let mut orders = heard.subscribe(&topic("orders"), 10);
    let lazy = Bus::lazy_with_link(place.link(), &BusOptions::default()).expect("a bus");

    lazy.notify_with(&topic("orders"), "paid").await.expect("sent");
    assert_eq!(payload(&mut orders).await, "paid");
    place.until_sessions(3).await;
    assert!(!lazy.state().is_connected());

    let mut late = [lazy.subscribe(&topic("orders"), 10), lazy.subscribe(&topic("orders"), 10)];
    for subscription in &mut late {
        assert_eq!(gap(subscription).await, GapReason::Started);
        assert!(lazy.state().is_connected());
        heard.notify_with(&topic("orders"), "sent").await.expect("sent");
        assert_eq!(payload(subscription).await, "sent");
    }
    place.until_sessions(4).await;
}

async fn notifications_wait_while_the_server_is_away_and_are_sent_when_it_is_back(place: impl Place) {
    let bus = open(&place).await;
    let mut subscription = bus.subscribe(&topic("t"), 10);
    let (awaited, followed) = (topic("awaited"), topic("t"));

    place.stop();

    bus.notify_soon(&awaited).expect("accepted");
    let mut waiting = pin!(bus.notify(&awaited));
    until("both sessions are missed", async || {
        assert!(waiting.as_mut().now_or_never().is_none(), "it cannot have been sent");
        let state = bus.state();
        !state.is_connected() && state.trouble == Some(Trouble::Unreachable)
    })
    .await;
    assert_eq!(bus.state().sent, 0);
    assert!(
        subscription.recv().now_or_never().is_none(),
        "a gap comes when LISTEN is in force, and never before"
    );

    place.start();

    timeout(PATIENCE, waiting).await.expect("in time").expect("sent");
    assert_eq!(gap(&mut subscription).await, GapReason::Reconnected);
    bus.notify_soon_with(&followed, "after").expect("accepted");
    assert_eq!(payload(&mut subscription).await, "after");
    until("it is well again", async || bus.state().trouble.is_none()).await;
    assert!(bus.state().is_connected());
}

async fn equal_notifications_that_wait_together_are_counted_once(place: impl Place) {
    let bus = open(&place).await;
    place.stop();
    until_taken(&bus).await;

    for payload in ["a", "b", "a", "b", "a"] {
        bus.notify_soon_with(&topic("t"), payload).expect("accepted");
    }
    let state = bus.state();
    assert_eq!((state.pending, state.coalesced, state.sent), (2, 3, 0));

    place.start();
    until("all are sent", async || bus.state().sent == 3).await;
    let state = bus.state();
    assert_eq!((state.pending, state.coalesced), (0, 3));
}

async fn the_state_shows_the_session_and_its_loss(place: impl Place) {
    let bus = open(&place).await;
    let subscription = bus.subscribe(&topic("t"), 1);
    until("it was asked", async || bus.state().last_heartbeat.is_some()).await;
    let well = bus.state();
    let since = well.connected_since.expect("connected");
    assert!(well.queue_usage.is_some_and(|usage| (0.0..=1.0).contains(&usage)));
    assert_eq!((well.topics, well.channels, well.subscribers, well.trouble), (1, 0, 1, None));

    place.stop();
    until("the loss is known", async || bus.state().trouble == Some(Trouble::Unreachable)).await;
    assert_eq!(bus.state().connected_since, None);
    assert_eq!(bus.state().last_heartbeat, well.last_heartbeat, "the last one");

    place.start();
    until("it listens again", async || bus.state().is_connected()).await;
    let again = bus.state();
    assert!(again.connected_since.is_some_and(|now| now > since));
    assert_eq!((again.gaps, again.trouble), (1, None));
    drop(subscription);
    assert_eq!((bus.state().topics, bus.state().subscribers), (0, 0));
}
