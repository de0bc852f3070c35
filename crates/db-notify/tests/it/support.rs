//! Helpers that several tests share.

use std::time::Duration;

use db_core::Config;
use db_notify::link::Link;
use db_notify::{
    Bus, BusOptions, Channel, Delivery, GapReason, MemoryLink, PostgresLink, Subscription, Topic,
};
use db_testkit::script::Script;
use db_testkit::{Proxy, TestDb, until};
use tokio::time::timeout;

/// No wait in these tests is longer than this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn config(db: &TestDb) -> Config {
    Config::from_url(&db.url()).expect("the test database's address")
}

pub(crate) async fn bus(db: &TestDb) -> Bus {
    Bus::open(&config(db), BusOptions::default()).await.expect("a bus")
}

pub(crate) fn topic(name: &str) -> Topic {
    Topic::new(name).expect("a topic")
}

pub(crate) fn channel(name: &str) -> Channel {
    Channel::new(name).expect("a channel")
}

pub(crate) async fn next(subscription: &mut Subscription) -> Delivery {
    timeout(PATIENCE, subscription.recv()).await.expect("a delivery in time").expect("an open bus")
}

pub(crate) async fn payload(subscription: &mut Subscription) -> String {
    match next(subscription).await {
        Delivery::Notification(notification) => notification.payload().to_owned(),
        Delivery::Gap(gap) => panic!("a gap: {gap}"),
    }
}

/// Ends the sessions of an application on the test's database, and waits until they are gone.
pub(crate) async fn kill(db: &TestDb, application: &str) {
    let killed: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity
         where datname = current_database() and application_name = $1",
    )
    .bind(application)
    .fetch_one(&db.pool())
    .await
    .expect("killed");
    assert!(killed > 0, "nobody was called {application}");
}

/// Returns the reason of the next delivery, which must be a gap.
pub(crate) async fn gap(subscription: &mut Subscription) -> GapReason {
    match next(subscription).await {
        Delivery::Gap(gap) => gap.reason,
        Delivery::Notification(notification) => panic!("no gap: {notification:?}"),
    }
}

/// A place where notifications are exchanged, with its faults.
pub(crate) trait Place {
    type Link: Link;

    fn link(&self) -> Self::Link;

    /// Ends all sessions, with an error.
    async fn cut(&self);

    /// Ends the session that next notifies this channel, before the notification is sent. Works once.
    fn cut_before_notify(&self, channel: &str);

    /// Ends the session that next notifies this channel, instead of the answer. Works once.
    fn cut_answer_to_notify(&self, channel: &str);

    /// Cuts all present sessions off without an error. New sessions work.
    fn black_hole(&self);

    /// Ends all sessions and refuses new ones.
    fn stop(&self);

    /// Accepts sessions again.
    fn start(&self);

    async fn until_sessions(&self, count: usize);
}

impl Place for MemoryLink {
    type Link = MemoryLink;

    fn link(&self) -> MemoryLink {
        self.clone()
    }

    async fn cut(&self) {
        MemoryLink::cut(self);
    }

    fn cut_before_notify(&self, _: &str) {
        MemoryLink::cut_before_notify(self);
    }

    fn cut_answer_to_notify(&self, _: &str) {
        MemoryLink::cut_answer_to_notify(self);
    }

    fn black_hole(&self) {
        MemoryLink::black_hole(self);
    }

    fn stop(&self) {
        MemoryLink::stop(self);
    }

    fn start(&self) {
        MemoryLink::start(self);
    }

    async fn until_sessions(&self, count: usize) {
        until(&format!("{count} sessions"), async || self.sessions() == count).await;
    }
}

/// PostgreSQL behind a proxy, which makes the faults.
pub(crate) struct Server {
    pub(crate) db: TestDb,
    proxy: Proxy,
}

impl Server {
    pub(crate) fn of(db: TestDb) -> Self {
        let proxy = Proxy::start(&db).expect("a proxy");
        Self { db, proxy }
    }
}

impl Place for Server {
    type Link = PostgresLink;

    fn link(&self) -> PostgresLink {
        let config = Config::from_url(&self.proxy.url()).expect("the proxy's address");
        PostgresLink::new(&config, &BusOptions::default())
    }

    async fn cut(&self) {
        sqlx::query(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity
             where datname = current_database() and application_name in ('bus', 'notifier')",
        )
        .execute(&self.db.pool())
        .await
        .expect("killed");
    }

    fn cut_before_notify(&self, channel: &str) {
        self.proxy.cut_before(channel);
    }

    fn cut_answer_to_notify(&self, channel: &str) {
        self.proxy.cut_answer_to(channel);
    }

    fn black_hole(&self) {
        self.proxy.half_open();
    }

    fn stop(&self) {
        self.proxy.refuse();
        self.proxy.reset();
    }

    fn start(&self) {
        self.proxy.heal();
    }

    async fn until_sessions(&self, count: usize) {
        self.db.until_sessions(&format!("{count} sessions"), |sessions| sessions.len() == count).await;
    }
}

/// A PostgreSQL that has no database, behind a proxy.
pub(crate) struct Scripted {
    /// Goes first.
    proxy: Proxy,
    script: Script,
}

impl Scripted {
    pub(crate) fn start() -> Self {
        let script = Script::start([]).expect("a script");
        let proxy = Proxy::to_address(&script.url()).expect("a proxy");
        Self { proxy, script }
    }
}

impl Place for Scripted {
    type Link = PostgresLink;

    fn link(&self) -> PostgresLink {
        let config = Config::from_url(&self.proxy.url()).expect("the proxy's address");
        PostgresLink::new(&config, &BusOptions::default())
    }

    async fn cut(&self) {
        let before = self.script.accepted();
        self.script.terminate();
        // The link may have other sessions by now, so there need not be a moment without any.
        let ended = || self.script.accepted() - u64::try_from(self.script.open_sessions()).expect("few");
        until("all sessions of before have ended", async || ended() >= before).await;
    }

    fn cut_before_notify(&self, channel: &str) {
        self.proxy.cut_before(channel);
    }

    fn cut_answer_to_notify(&self, channel: &str) {
        self.proxy.cut_answer_to(channel);
    }

    fn black_hole(&self) {
        self.proxy.half_open();
    }

    fn stop(&self) {
        self.proxy.refuse();
        self.proxy.reset();
    }

    fn start(&self) {
        self.proxy.heal();
    }

    async fn until_sessions(&self, count: usize) {
        until(&format!("{count} sessions"), async || self.script.open_sessions() == count).await;
    }
}
