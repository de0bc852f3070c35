//! A connection on loan from a pool.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_stream::try_stream;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, TryStreamExt};
use sqlx::postgres::{PgArguments, PgConnection, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection, Either, Execute, Executor, Postgres, SqlStr};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::class::Verdict;
use crate::deadline::{DeadlineError, Limited, within};
use crate::doubt::{Hook, When};
use crate::error::said;
use crate::lent::{Found, LentError};
use crate::log::Trip;
use crate::pool::{
    CUT_OFF, Cancel, LET_IT_END, Live, Shared, ask, come_to_rest, forget_statements, is_in_transaction,
};
use crate::pooler::Needs;
use crate::question::{self, Standing};
use crate::role::{NotWritable, Role};
use crate::sql;
use crate::stale;
use crate::statement::{Flight, State, Transaction};
use crate::text::Text;
use crate::tracker::Asker;
use crate::{Class, Error, PoolerError, Tx, TxOptions};

/// The end of what was cut off is waited for no longer than this where a thread waits.
const REST_LIMIT: Duration = Duration::from_secs(1);

/// In a transaction, a statement that was cut off may go on for so long before it is cancelled, as documented at
/// [`Tx`](crate::Tx): the transaction fails with it.
const LET_A_TRANSACTION_GO_ON: Duration = Duration::from_secs(5);

/// A connection taken from a [`Pool`](crate::Pool), given back when it is dropped.
///
/// `&mut Conn` is a sqlx executor. There is no `Deref` to sqlx's connection, because every `&mut *conn` would then have
/// to be suspected; [`Conn::as_sqlx`] is there for code that needs it.
///
/// Given back clean, it is at once ready for the next user, without a round trip. Dropped with a statement cut off, with a
/// transaction open, or after a statement that changes the session, it is first brought back to a known state, in the
/// background: the statement is cancelled on the server, the transaction rolled back, the session reset. With its link
/// lost, it is replaced.
pub struct Conn {
    /// There until it is dropped.
    live: Option<Box<Live>>,
    inner: Arc<Shared>,
    asker: Asker,
    /// When it was handed out.
    taken: Instant,
    /// It was taken for one statement, which is sent when it is taken, and goes back with the answer: two readings of the clock
    /// and two notes to the tracker less.
    once: bool,
    pub(crate) state: State,
}

impl Conn {
    /// Lent out now, for one statement if that is told.
    pub(crate) fn new(
        live: Box<Live>,
        inner: Arc<Shared>,
        asker: Asker,
        now: Instant,
        statement: Option<&SqlStr>,
    ) -> Self {
        live.session.lend(asker, now, inner.options.tracker, statement);
        let once = statement.is_some();
        Self { live: Some(live), inner, asker, taken: now, once, state: State::default() }
    }

    /// Notes that there was something to do before it could be handed out, for one statement if that is told.
    pub(crate) fn start_checkout(&mut self, statement: Option<&SqlStr>) {
        self.taken = Instant::now();
        self.once = statement.is_some();
        if let Some(sql) = statement.filter(|_| self.inner.tracks()) {
            self.live().session.statement_started(sql, self.taken);
        }
    }

    /// Begins a transaction, which takes the connection with it.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when `BEGIN` fails.
    pub async fn begin(self) -> Result<Tx, Error> {
        self.begin_with(TxOptions::default()).await
    }

    /// Begins a transaction of a certain kind.
    ///
    /// Dropping the future leaves nothing open on the server.
    ///
    /// # Errors
    ///
    /// [`Error::Statement`] when `BEGIN` or a [local setting](TxOptions::set) fails.
    pub async fn begin_with(self, options: TxOptions) -> Result<Tx, Error> {
        Tx::begin(self, options).await
    }

    /// Asks the server for a sign of life: one round trip, which no statistics show.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// [`Error::Deadline`] when there is none within the pool's
    /// [`statement_timeout`](crate::PoolOptions::statement_timeout), [`Error::Statement`] when the link is lost.
    pub async fn ping(&mut self) -> Result<(), Error> {
        self.drain().await?;
        let limit = self.limit();
        let (live, state) = self.parts();
        state.begin(Flight::Control);
        if let Ok(answer) = timeout(limit.wait, live.raw.ping()).await {
            state.end(answer.as_ref().err());
            Ok(answer?)
        } else {
            Err(self.expired(limit).into())
        }
    }

    /// Runs something if a statement on this connection is cut off, since its future is dropped, a limit has passed or the
    /// link is lost: once the server has come to the end of it, or nobody can know any more, in the background. Not when the
    /// server is known to have refused the statement, nor when every statement is answered: its caller knows then.
    ///
    /// It is for wake-ups: the statement may be done, and its caller gone. See [`Tx::unless_rolled_back`], which is the same for
    /// a commit. It must not block.
    pub fn if_cut_off(&mut self, run: impl FnOnce() + Send + 'static) {
        let hook = Hook { level: 0, when: When::NotRolledBack, run: Box::new(run) };
        self.state.doubt.add(vec![hook]);
    }

    /// The process id of the server process, as in `pg_stat_activity`. 0 through a
    /// [pooler](crate::Pooler::Transaction), where it may be another one with each transaction.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.live().session.pid
    }

    /// sqlx's own connection, for code that insists on it. Nothing is known of what is done with it, so before the next
    /// statement that does not go through it, one round trip asks where the session stands, and the session is reset afterwards.
    /// Behind a [pooler](crate::Pooler::Transaction), the connection is closed afterwards.
    ///
    /// That statement fails with [`Error::Lent`], and is not sent, when the session gives each statement the answer of another:
    /// sqlx loses count of the answers when a `COPY` does not end as it should, for example when its future is dropped. The
    /// connection is of no more use then, and is closed. The same is said while a transaction is open that was begun through
    /// sqlx's connection, for which the statement was not meant.
    ///
    /// When a statement was cut off on the connection, its end is waited for here, on this thread and for 1 s at most, or sqlx would
    /// take its error for that of the next. After 0.25 s it is cancelled; a transaction around it has failed then (25P02). On a runtime of one thread it is not waited for: [`ping`](Self::ping) first.
    pub fn as_sqlx(&mut self) -> &mut PgConnection {
        self.rest_on_this_thread();
        self.state.lend();
        &mut self.live_mut().raw
    }

    /// Waits for the end of a statement that was cut off. Other tasks of this thread go on elsewhere.
    fn rest_on_this_thread(&mut self) {
        if matches!(self.state.in_flight(), None | Some(Flight::Lent)) {
            return;
        }
        let Ok(runtime) = Handle::try_current() else { return };
        if runtime.runtime_flavor() != RuntimeFlavor::MultiThread {
            return;
        }
        // Cancelled in time, in a transaction, too: what is sent on the connection that is lent would wait for it.
        let rest = self.end_what_was_cut_off(false, REST_LIMIT / 4);
        let error = match block_in_place(|| runtime.block_on(timeout(REST_LIMIT, rest))) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => said(&error),
            Err(_) => format!("it takes longer than {REST_LIMIT:?}"),
        };
        let (pool, pid) = (&self.inner.options.name, self.pid());
        tracing::debug!(pool, pid, error, "lent before what was cut off on it came to its end");
    }

    pub(crate) fn live(&self) -> &Live {
        self.live.as_ref().expect("there until it is dropped")
    }

    pub(crate) fn live_mut(&mut self) -> &mut Live {
        self.live.as_mut().expect("there until it is dropped")
    }

    pub(crate) fn parts(&mut self) -> (&mut Live, &mut State) {
        (self.live.as_mut().expect("there until it is dropped"), &mut self.state)
    }

    pub(crate) fn asker(&self) -> Asker {
        self.asker
    }

    pub(crate) fn inner(&self) -> &Arc<Shared> {
        &self.inner
    }

    /// Runs transaction control by the simple protocol: one round trip, nothing prepared.
    pub(crate) async fn control(&mut self, statement: SqlStr) -> Result<(), sqlx::Error> {
        self.control_row(statement).await.map(drop)
    }

    pub(crate) async fn control_row(&mut self, statement: SqlStr) -> Result<Option<PgRow>, sqlx::Error> {
        self.drain().await?;
        let limit = Limited::of_statement(self.inner.options.statement_timeout);
        let sent = statement.clone();
        self.travel(
            &statement,
            Flight::Control,
            limit,
            |raw| raw.fetch_optional(sqlx::raw_sql(sent)),
            |_, _| {},
        )
        .await
    }

    /// Sends something, and waits for the whole of its answer within the limit.
    async fn travel<T>(
        &mut self,
        sql: &SqlStr,
        flight: Flight,
        limit: Limited,
        run: impl for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        let trip = self.depart(sql, flight);
        let running = run(&mut self.live_mut().raw);
        let answer = within(limit.ends(trip.started), running).await;
        self.judge(trip, sql, limit, answer, note)
    }

    /// Takes note of an answer, or of its absence.
    fn judge<T>(
        &mut self,
        mut trip: Trip,
        sql: &SqlStr,
        limit: Limited,
        answer: Option<Result<T, sqlx::Error>>,
        note: impl FnOnce(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        let Some(answer) = answer else { return Err(self.too_late(&trip, sql, limit)) };
        if let Ok(answer) = &answer {
            note(&mut trip, answer);
        }
        self.arrive(&trip, sql, answer.as_ref().err());
        answer.map_err(|error| self.explained(error))
    }

    /// Marks the error of a session that may not write on its server's decision.
    fn explained(&self, error: sqlx::Error) -> sqlx::Error {
        if Class::of(&error) == Class::ReadOnly && !self.state.reads_only {
            NotWritable::mark(error)
        } else {
            error
        }
    }

    /// The error of an answer that did not come in time, which the log is to show, too.
    fn too_late(&mut self, trip: &Trip, sql: &SqlStr, limit: Limited) -> sqlx::Error {
        let error = self.expired(limit).into();
        trip.log(Instant::now(), &self.inner.options, self.asker.at, sql.as_str(), Some(&error));
        error
    }

    /// Reads the end of a statement that was cut off, if there is one: the driver would take its error for that of the next. It
    /// is cancelled when it does not end by itself at once; in a transaction, which would fail with it, only after
    /// [`LET_A_TRANSACTION_GO_ON`], and then that is said. After sqlx's own connection was lent, asks where the session stands.
    pub(crate) async fn drain(&mut self) -> Result<(), sqlx::Error> {
        let is_open = match self.state.transaction {
            Transaction::Open => true,
            // One may have been begun by text.
            Transaction::None => self.state.session_changed,
            Transaction::Aborted => false,
        };
        let patience = if is_open { LET_A_TRANSACTION_GO_ON } else { LET_IT_END };
        self.end_what_was_cut_off(is_open, patience).await
    }

    /// The same, where the transaction around it is to be undone: it is cancelled at once.
    pub(crate) async fn give_up(&mut self) -> Result<(), sqlx::Error> {
        self.end_what_was_cut_off(false, LET_IT_END).await
    }

    async fn end_what_was_cut_off(
        &mut self,
        keeps_transaction: bool,
        patience: Duration,
    ) -> Result<(), sqlx::Error> {
        let Some(flight) = self.state.in_flight() else { return Ok(()) };
        if matches!(flight, Flight::Lent | Flight::OutOfStep) {
            let standing = self.ask().await?;
            return self.state.stands(standing).map_err(|found| self.not_sent(found));
        }
        let limit = self.limit();
        let by_text = self.state.transaction == Transaction::None;
        let live = self.live.as_mut().expect("there until it is dropped");
        let rested = timeout(limit.wait, async {
            let rest = come_to_rest(&self.inner, live, flight, patience).await?;
            let was_cancelled = rest.failed && rest.cancel == Cancel::Answered;
            let fails_transaction = was_cancelled
                && keeps_transaction
                && (!by_text || is_in_transaction(&self.inner, live).await?);
            Ok((rest, fails_transaction))
        });
        match rested.await {
            Ok(Ok((rest, _))) if rest.cancel == Cancel::Unanswered => {
                // The request may be carried out whenever the session does something, so that is to do nothing more.
                self.state.mark_lost();
                let what =
                    "a request to cancel the statement before was not answered, and might hit this one";
                Err(sqlx::Error::Protocol(what.to_owned()))
            }
            Ok(Ok((rest, fails_transaction))) => {
                // Nobody asked for its error, but a transaction around it has failed, too.
                self.state.at_rest(rest.failed);
                self.state.doubt.came_to(rest);
                if fails_transaction {
                    let (pool, at) = (&self.inner.options.name, self.asker.at);
                    let error = DeadlineError::of_cut_off(pool, at, LET_A_TRANSACTION_GO_ON).into();
                    self.state.failure.get_or_insert(Verdict::of(&error));
                    return Err(error);
                }
                live.cut_off += 1;
                if live.cut_off < CUT_OFF { Ok(()) } else { self.forget_statements(limit).await }
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Has the server forget what was prepared, since nobody knows of all of it.
    async fn forget_statements(&mut self, limit: Limited) -> Result<(), sqlx::Error> {
        if self.inner.is_pooled() || self.state.transaction != Transaction::None {
            // Done when it is given back.
            self.state.session_changed = true;
            return Ok(());
        }
        let live = self.live.as_mut().expect("there until it is dropped");
        self.state.begin(Flight::Control);
        match timeout(limit.wait, forget_statements(live)).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                forgotten
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    /// Asks the session where it stands. The answer clears what was in flight, but is not noted.
    pub(crate) async fn ask(&mut self) -> Result<Standing, sqlx::Error> {
        if self.state.in_flight() == Some(Flight::OutOfStep) {
            return Err(self.not_sent(Found::OutOfStep));
        }
        let limit = self.limit();
        let live = self.live.as_mut().expect("there until it is dropped");
        if !self.state.is_lent() {
            self.state.begin(Flight::Control);
        }
        let asked = timeout(limit.wait, async {
            if self.state.transaction == Transaction::None {
                ask(&self.inner, live).await
            } else {
                // Without a cancel, which could hit the question, and a transaction would be lost with it.
                question::ask(&mut live.raw, &mut live.numbers).await
            }
        });
        match asked.await {
            Ok(Ok(Some(standing))) => {
                self.state.end(None);
                live.last_seen = Instant::now();
                Ok(standing)
            }
            Ok(Ok(None)) => {
                self.state.mark_out_of_step();
                Err(self.not_sent(Found::OutOfStep))
            }
            Ok(Err(error)) => {
                self.state.mark_lost();
                Err(error)
            }
            Err(_) => Err(self.expired(limit).into()),
        }
    }

    fn not_sent(&self, found: Found) -> sqlx::Error {
        LentError::new(&self.inner.options.name, self.asker.at, found).into()
    }

    /// How long the next wait for the server may be.
    pub(crate) fn limit(&self) -> Limited {
        let statement = Limited::of_statement(self.inner.options.statement_timeout);
        match &self.state.ends {
            Some(ends) => ends.limit().min(statement),
            None => statement,
        }
    }

    /// The error of a wait that was too long. The statement stays in flight, so it is cancelled when the connection is
    /// dropped.
    pub(crate) fn expired(&mut self, limit: Limited) -> DeadlineError {
        DeadlineError::new(&self.inner.options.name, self.asker.at, limit)
    }

    /// Raises the flag, and tells the tracker.
    fn depart(&mut self, sql: &SqlStr, flight: Flight) -> Trip {
        let trip = Trip::begin(if self.once { self.taken } else { Instant::now() });
        self.state.begin(flight);
        if self.inner.tracks() && !self.once {
            self.live().session.statement_started(sql, trip.started);
        }
        trip
    }

    /// Lowers the flag, tells the tracker, and writes the log.
    fn arrive(&mut self, trip: &Trip, sql: &SqlStr, error: Option<&sqlx::Error>) {
        let now = Instant::now();
        if error.is_some() && self.live().role == Role::ByChoice {
            // That it is refused a write says nothing new of its server.
            self.state.reads_only = true;
        }
        self.state.end(error);
        if !self.state.is_lost() {
            self.live_mut().last_seen = now;
        }
        if self.inner.tracks() && !self.once {
            self.live().session.statement_finished();
        }
        trip.log(now, &self.inner.options, self.asker.at, sql.as_str(), error);
    }

    /// Notes what a statement will leave behind, before it is sent.
    ///
    /// # Errors
    ///
    /// A [`PoolerError`] when there is a pooler in between that would leave it to others.
    fn take_note(&mut self, text: &Text) -> Result<(), PoolerError> {
        self.admit(|| text.needs_session())?;
        let changes_session = text.changes_session(&mut self.live_mut().known);
        // Outside of a transaction, what sets something for the session only is of interest.
        if changes_session || self.state.transaction != Transaction::None {
            self.state.reads_only |= says_that_it_reads_only(text.as_str());
        }
        if changes_session {
            self.state.session_changed = true;
            self.state.unseen = true;
            self.state.may_be_begun = true;
            if self.state.transaction == Transaction::Aborted {
                // `ROLLBACK TO SAVEPOINT` may mend it; the commit will ask.
                self.state.transaction = Transaction::Open;
            }
        }
        Ok(())
    }

    /// Refuses what a pooler in between would leave to others.
    fn admit(&self, needs: impl FnOnce() -> Option<Needs>) -> Result<(), PoolerError> {
        if !self.inner.is_pooled() {
            return Ok(());
        }
        match needs() {
            Some(needs) => Err(PoolerError::new(&self.inner.options.name, self.asker.at, needs)),
            None => Ok(()),
        }
    }

    /// Has a statement sent under a text of its own where it must be. A pooler keeps what was prepared under one text, for all its
    /// clients, and closing a statement does not make it forget: once plans were found stale, another text is what makes a new one.
    fn distinguish(&self, text: &mut Text) {
        let stale = self.live().plans;
        if stale > 0 && self.inner.is_pooled() {
            text.mark(&format!("/* {:x}.{stale} */", self.inner.mark));
        }
    }

    /// Prepares a statement to be sent, and says what it needs to be sent again when its plan turns out stale, if it may. That is
    /// safe where the server finds it out before it runs anything, and outside of a transaction nothing else is lost with it.
    fn spare(&self, text: &mut Text) -> Option<PgArguments> {
        self.distinguish(text);
        let is_alone = self.state.transaction == Transaction::None && !self.state.session_changed;
        if is_alone { text.spare() } else { None }
    }

    /// Whether the statement that has just failed is to be sent again. All connections of the pool forget their plans: what
    /// made this one stale has made others, too.
    async fn heals(&mut self, error: &sqlx::Error, text: &Text) -> bool {
        if crate::class::is_stale_type(error) {
            self.has_stale_types();
            return false;
        }
        if !crate::class::is_stale_plan(error) || !stale::is_of_the_driver(error, text) {
            return false;
        }
        let plans = self.inner.plans_are_stale();
        if self.state.transaction != Transaction::None {
            // Nothing of it is stored, and the next run finds new plans: it lost against whoever changed the table.
            self.state.failure = Some(Verdict::conflict());
            return false;
        }
        let limit = self.limit();
        self.state.begin(Flight::Control);
        let live = self.live.as_mut().expect("there until it is dropped");
        match timeout(limit.wait, live.raw.clear_cached_statements()).await {
            Ok(forgotten) => {
                self.state.end(forgotten.as_ref().err());
                live.plans = plans;
                forgotten.is_ok()
            }
            Err(_) => false,
        }
    }

    /// Notes that the driver knows a type by a number that is another's now, or nobody's, which nothing but a new connection
    /// makes it forget. Others that are as old know it as well.
    fn has_stale_types(&mut self) {
        self.state.mark_useless();
        if self.state.transaction != Transaction::None {
            // As with a stale plan, the next run finds the new type.
            self.state.failure = Some(Verdict::conflict());
        }
        if self.live().uses > 0 {
            self.inner.types_are_stale(self.live().types);
        }
    }

    /// A statement that answers with one row, or none.
    pub(crate) fn optional<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<Option<PgRow>, sqlx::Error>> + Send + 'c {
        self.whole(
            text,
            |raw, text| raw.fetch_optional(text),
            |trip, row| trip.rows += u64::from(row.is_some()),
        )
    }

    /// A statement whose rows nobody wants.
    pub(crate) fn count<'c>(
        &'c mut self,
        text: &'c mut Text,
    ) -> impl Future<Output = Result<PgQueryResult, sqlx::Error>> + Send + 'c {
        self.whole(text, |raw, text| raw.execute(text), |trip, done| trip.affected += done.rows_affected())
    }

    #[expect(
        clippy::manual_async_fn,
        reason = "the future of an async function has room for its arguments twice"
    )]
    fn whole<'c, T: Send>(
        &'c mut self,
        text: &'c mut Text,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>
        + Send
        + Sync
        + 'c,
        note: impl Fn(&mut Trip, &T) + Send + Sync + 'c,
    ) -> impl Future<Output = Result<T, sqlx::Error>> + Send + 'c {
        async move {
            if self.state.in_flight().is_some() {
                // In a box: most statements have nothing before them.
                Box::pin(self.drain()).await?;
            }
            self.take_note(text)?;
            let limit = self.limit();
            let spare = self.spare(text);
            // As in `once_more`, and not by a function of both, which would be one more future around it.
            let trip = self.depart(text.sql_str(), Flight::Statement);
            let answer = within(limit.ends(trip.started), run(&mut self.live_mut().raw, text)).await;
            match self.judge(trip, text.sql_str(), limit, answer, &note) {
                Err(error) => Box::pin(self.once_more(error, text, spare, limit, run, note)).await,
                answer => answer,
            }
        }
    }

    /// Sends a statement that has just failed a second time, if that was for a stale plan, and it may be.
    async fn once_more<T>(
        &mut self,
        error: sqlx::Error,
        text: &mut Text,
        spare: Option<PgArguments>,
        limit: Limited,
        run: impl for<'r> Fn(&'r mut PgConnection, &'r mut Text) -> BoxFuture<'r, Result<T, sqlx::Error>>,
        note: impl Fn(&mut Trip, &T),
    ) -> Result<T, sqlx::Error> {
        if !self.heals(&error, text).await {
            return Err(error);
        }
        let Some(spare) = spare else { return Err(error) };
        text.refill(spare);
        self.distinguish(text);
        let trip = self.depart(text.sql_str(), Flight::Statement);
        let answer = within(limit.ends(trip.started), run(&mut self.live_mut().raw, text)).await;
        self.judge(trip, text.sql_str(), limit, answer, note)
    }

    /// A statement whose rows are read one by one. Each wait for the next has the limit, not the whole.
    pub(crate) fn many(
        &mut self,
        mut text: Text,
    ) -> BoxStream<'_, Result<Either<PgQueryResult, PgRow>, sqlx::Error>> {
        Box::pin(try_stream! {
            self.drain().await?;
            self.take_note(&text)?;
            let sql = text.sql_str().clone();
            let ends = self.state.ends;
            let mut may_repeat = true;
            loop {
                let mut limit = self.limit();
                let spare = self.spare(&mut text);
                let mut trip = self.depart(&sql, Flight::Statement);
                let live = self.live.as_mut().expect("there until it is dropped");
                let mut results = live.raw.fetch_many(&mut text);
                let failure = loop {
                    // Most rows are there already, and need no timer.
                    let next = if let Some(next) = results.try_next().now_or_never() {
                        Ok(next)
                    } else {
                        // What is left of a transaction's time is less for each row.
                        limit = ends.map_or(limit, |ends| ends.limit().min(limit));
                        timeout(limit.wait, results.try_next()).await
                    };
                    match next {
                        Ok(Ok(Some(result))) => {
                            may_repeat = false;
                            trip.saw(&result);
                            yield result;
                        }
                        Ok(Ok(None)) => break None,
                        Ok(Err(error)) => break Some(error),
                        Err(_) => {
                            drop(results);
                            Err(self.too_late(&trip, &sql, limit))?;
                            return;
                        }
                    }
                };
                drop(results);
                self.arrive(&trip, &sql, failure.as_ref());
                let Some(error) = failure.map(|error| self.explained(error)) else { break };
                let healed = self.heals(&error, &text).await;
                let Some(spare) = spare.filter(|_| healed && may_repeat) else {
                    Err(error)?;
                    break;
                };
                text.refill(spare);
                may_repeat = false;
            }
        })
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        let Some(live) = self.live.take() else { return };
        let is_over = self.once && self.state.is_clean();
        let now = if is_over { live.last_seen } else { Instant::now() };
        let returned = live.session.take_back(now);
        if let Some(returned) = returned.as_ref().filter(|returned| returned.leaked) {
            let (pool, pid, held) = (&self.inner.options.name, live.session.pid, returned.held);
            let at = returned.at;
            tracing::info!(
                pool,
                pid,
                ?held,
                "a connection that was held for too long was returned after all: {at}"
            );
        }
        let mut state = std::mem::take(&mut self.state);
        if state.in_flight().is_none() && !state.is_lost() {
            // There is no doubt about anything.
            state.doubt.forget();
        }
        if state.is_lost() {
            self.inner.discard(live, returned.as_ref(), state);
        } else if state.is_clean() && !self.inner.always_resets() {
            self.inner.give_back(live, returned.as_ref(), Some(now));
        } else {
            self.inner.repair(live, returned.as_ref(), state);
        }
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Conn")
            .field("pool", &self.inner.options.name)
            .field("pid", &self.pid())
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl<'c> Executor<'c> for &'c mut Conn {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move { self.count(&mut text).await })
    }

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        self.many(Text::of(query))
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, sqlx::Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let mut text = Text::of(query);
        Box::pin(async move { self.optional(&mut text).await })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        // Owned, since what borrows it would have to outlive every use of the connection.
        let parameters = parameters.to_vec();
        Box::pin(async move {
            self.drain().await?;
            self.admit(|| sql::needs_session(sql.as_str(), false))?;
            let (limit, sent) = (self.limit(), sql.clone());
            self.travel(&sql, Flight::Statement, limit, |raw| prepare(raw, sent, parameters), |_, _| {}).await
        })
    }

    #[doc(hidden)]
    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<sqlx::Describe<Postgres>, sqlx::Error>>
    where
        'c: 'e,
    {
        Box::pin(async move {
            self.drain().await?;
            let (limit, sent) = (self.limit(), sql.clone());
            self.travel(&sql, Flight::Statement, limit, |raw| raw.describe(sent), |_, _| {}).await
        })
    }
}

/// Whether a text sets its transaction, or the session, to read only. Most texts are no such thing by their first letter.
fn says_that_it_reads_only(sql: &str) -> bool {
    let sql = sql.trim_start();
    if !sql.starts_with(['s', 'S', 'b', 'B']) {
        return false;
    }
    let is = |keyword: &str| sql.get(..keyword.len()).is_some_and(|word| word.eq_ignore_ascii_case(keyword));
    if !(is("set") || is("start") || is("begin")) {
        return false;
    }
    let sql = sql.to_ascii_lowercase();
    sql.contains("read only") || sql.contains("read_only")
}

fn prepare(
    raw: &mut PgConnection,
    sql: SqlStr,
    parameters: Vec<PgTypeInfo>,
) -> BoxFuture<'_, Result<PgStatement, sqlx::Error>> {
    Box::pin(async move { raw.prepare_with(sql, &parameters).await })
}
