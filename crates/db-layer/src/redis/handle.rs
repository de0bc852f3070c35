//! The connection that all users share, its state and its end.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{fmt, io};

use ::redis::aio::ConnectionLike;
use ::redis::{Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ServerErrorKind, Value, cmd};
use futures_util::FutureExt;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::breaker::{Admitted, Breaker, Found};
use super::link::Link;
use super::{RedisConfig, RedisFigures, RedisHealth};
use crate::DatabaseHealth;

/// Redis, as a connection that all clones share: commands of several tasks are sent without waiting for the answers of others. It is fit for the
/// commands of the crate [`redis`](super::client), but for those that block or subscribe, and for those that change the connection of all: `SELECT`,
/// `WATCH` and `MULTI` as single commands, `QUIT`.
///
/// It connects at the first command, and again at the next after it was lost: the command that finds the loss fails. After
/// [`Db::shutdown`](crate::Db::shutdown) every command fails, and nothing is connected to any more.
///
/// Dropping the future of a command is safe: the command may be executed, and its answer is dropped.
#[derive(Clone)]
pub struct Redis {
    shared: Arc<Shared>,
}

struct Shared {
    config: RedisConfig,
    began: Instant,
    link: Link,
    /// Of commands that are not answered yet.
    in_use: TaskTracker,
    closed: CancellationToken,
    was_used: AtomicBool,
    breaker: Mutex<Breaker>,
    /// How many commands were answered.
    answers: AtomicU64,
    without: AtomicU64,
    seen: Mutex<Seen>,
}

#[derive(Debug, Clone)]
struct Seen {
    server: DatabaseHealth,
    figures: Option<RedisFigures>,
}

/// Why somebody did without Redis.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WithoutRedis {
    /// It was not asked, since it did not answer a moment ago.
    #[error("Redis was not asked, since it did not answer a moment ago")]
    Resting,
    /// It did not answer in time. What it was told to do may be done.
    #[error("Redis did not answer within {0:?}")]
    Late(Duration),
    /// A command failed.
    #[error("a command to Redis failed")]
    Failed(#[from] RedisError),
}

impl Redis {
    /// Must be called in a runtime. Connects to nothing.
    pub(crate) fn new(config: RedisConfig) -> Self {
        let shared = Shared {
            began: Instant::now(),
            link: Link::new(&config),
            in_use: TaskTracker::new(),
            closed: CancellationToken::new(),
            was_used: AtomicBool::new(false),
            breaker: Mutex::new(Breaker::Closed),
            answers: AtomicU64::new(0),
            without: AtomicU64::new(0),
            seen: Mutex::new(Seen { server: DatabaseHealth::NotAsked, figures: None }),
            config,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Runs commands, if Redis is there and takes no longer than `limit` for all of them. When it was not reached or was late, nobody is sent to it
    /// for the time of [`RedisConfig::rest`], and then one caller at a time until it answers: a frozen Redis costs a few callers the limit,
    /// and not each.
    ///
    /// Dropping the future is safe: what was sent may be executed.
    ///
    /// # Errors
    ///
    /// [`WithoutRedis`], which is counted in [`RedisHealth::without`]. The caller is to go on without Redis. An error that Redis answered with
    /// counts, too, and keeps nobody else away, as does a value that is not of the type that was asked for.
    pub async fn within<T, F>(
        &self,
        limit: Duration,
        commands: impl FnOnce(Redis) -> F,
    ) -> Result<T, WithoutRedis>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let Some(asking) = Asking::begin(&self.shared) else {
            self.shared.without.fetch_add(1, Ordering::Relaxed);
            return Err(WithoutRedis::Resting);
        };
        let before = self.shared.answers.load(Ordering::Relaxed);
        let done = match timeout(limit, commands(self.clone())).await {
            Ok(done) => done.map_err(WithoutRedis::from),
            Err(_) => Err(WithoutRedis::Late(limit)),
        };
        // By this caller's commands or by those of others: then it is there, and only something else is wrong.
        let is_there = done.is_ok() || self.shared.answers.load(Ordering::Relaxed) != before;
        let opens = asking.end(if is_there { Found::Answer } else { Found::Nothing });
        if let Err(why) = &done {
            self.shared.without.fetch_add(1, Ordering::Relaxed);
            if opens {
                let (redis, why) = (&self.shared.config, why as &(dyn std::error::Error + 'static));
                tracing::info!(%redis, why, "redis is left alone for {:?}", redis.rest);
            }
        }
        done
    }

    /// What is known of it.
    #[must_use]
    pub fn health(&self) -> RedisHealth {
        let Seen { server, figures } = self.shared.seen().clone();
        let without = self.shared.without.load(Ordering::Relaxed);
        RedisHealth { server, figures, without, is_closed: self.shared.closed.is_cancelled() }
    }

    /// Whether anybody has sent a command.
    pub(crate) fn was_used(&self) -> bool {
        self.shared.was_used.load(Ordering::Relaxed)
    }

    /// Asks how it is, and notes it. It may take as long as a connection and an answer.
    pub(crate) async fn look(&self) {
        let began = Instant::now();
        let limit = self.shared.config.connect.saturating_add(self.shared.config.answer);
        let mut this = self.clone();
        let asked = timeout(limit, cmd("INFO").query_async::<String>(&mut this)).await;
        let answers = DatabaseHealth::Answers { within: began.elapsed() };
        let (server, figures) = match asked {
            Ok(Ok(info)) => (answers, Some(RedisFigures::parse(&info))),
            // It may forbid this command, and no other.
            Ok(Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::NoPerm) => (answers, None),
            Ok(Err(error)) => {
                // Silence may be that of a machine that is gone, which nothing else tells.
                if error.is_timeout() {
                    self.shared.link.take();
                }
                (DatabaseHealth::Fails { reason: error.to_string() }, None)
            }
            Err(_) => {
                self.shared.link.take();
                (DatabaseHealth::Fails { reason: format!("no answer within {limit:?}") }, None)
            }
        };
        let mut seen = self.shared.seen();
        let redis = &self.shared.config;
        match (&seen.server, &server) {
            (DatabaseHealth::Fails { .. }, DatabaseHealth::Answers { .. }) => {
                tracing::info!(%redis, "redis answers again");
            }
            (DatabaseHealth::Fails { .. }, DatabaseHealth::Fails { .. }) => {}
            (_, DatabaseHealth::Fails { reason }) => tracing::warn!(%redis, reason, "redis does not answer"),
            _ => {}
        }
        *seen = Seen { server, figures };
    }

    /// Takes no more commands, waits for those under way, and ends the session (`QUIT`), all within `limit`. False if that was not enough: the
    /// connection then ends with the last command. Dropping the future leaves it without new commands; call it again to go on from there.
    pub(crate) async fn close(&self, limit: Duration) -> bool {
        self.shared.closed.cancel();
        self.shared.in_use.close();
        let end = async {
            self.shared.in_use.wait().await;
            if let Some(mut connection) = self.shared.link.take()
                && let Err(error) = cmd("QUIT").query_async::<()>(&mut connection).await
            {
                tracing::debug!(%error, "the connection to redis was lost before it was closed");
            }
        };
        let is_closed = timeout(limit, end).await.is_ok();
        self.shared.link.take();
        is_closed
    }
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A permission to send one command, which a shutdown waits for.
    fn enter(&self) -> RedisResult<TaskTrackerToken> {
        let token = self.in_use.token();
        // Afterwards: either this sees that it is closed, or the shutdown sees the token.
        if self.closed.is_cancelled() {
            let closed = "the connection to Redis is closed: the service shuts down";
            return Err(io::Error::new(io::ErrorKind::NotConnected, closed).into());
        }
        self.was_used.store(true, Ordering::Relaxed);
        Ok(token)
    }

    /// Notes what came of a command.
    fn came_back<T>(&self, number: u64, answer: RedisResult<T>) -> RedisResult<T> {
        match &answer {
            Err(error) if error.is_unrecoverable_error() => self.link.lost(number),
            Err(error) if !is_answer(error) => {}
            _ => {
                self.answers.fetch_add(1, Ordering::Relaxed);
            }
        }
        answer
    }
}

/// Whether Redis has answered, with an error.
fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension)
}

/// A caller that asks Redis. Dropped, it has given up.
struct Asking<'a> {
    shared: &'a Shared,
    admitted: Option<Admitted>,
}

impl<'a> Asking<'a> {
    fn begin(shared: &'a Shared) -> Option<Self> {
        let admitted = shared.breaker().admit(shared.began.elapsed())?;
        Some(Self { shared, admitted: Some(admitted) })
    }

    /// True if this opens the breaker.
    fn end(mut self, found: Found) -> bool {
        self.note(found)
    }

    fn note(&mut self, found: Found) -> bool {
        let Some(admitted) = self.admitted.take() else { return false };
        let (now, rest) = (self.shared.began.elapsed(), self.shared.config.rest);
        self.shared.breaker().found(now, admitted, found, rest)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.note(Found::Unknown);
    }
}

impl ConnectionLike for Redis {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        async move {
            let _in_use = self.shared.enter()?;
            let (mut connection, number) = self.shared.link.get().await?;
            self.shared.came_back(number, connection.req_packed_command(cmd).await)
        }
        .boxed()
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        async move {
            let _in_use = self.shared.enter()?;
            let (mut connection, number) = self.shared.link.get().await?;
            let answers = connection.req_packed_commands(pipeline, offset, count).await;
            self.shared.came_back(number, answers)
        }
        .boxed()
    }

    fn get_db(&self) -> i64 {
        self.shared.config.client.get_connection_info().redis_settings().db()
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Redis").field(&format_args!("{}", self.shared.config)).finish()
    }
}
