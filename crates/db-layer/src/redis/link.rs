//! The one connection: dialled by the first that needs it, and anew by the next after it was lost.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, Client, RedisResult};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared};

use super::RedisConfig;

/// The client's own reconnecting hands out the error of an earlier attempt, and never tries again after one that the server refused.
pub(super) struct Link {
    client: Arc<Client>,
    bounds: AsyncConnectionConfig,
    now: Mutex<Now>,
}

struct Now {
    /// Of the connections and attempts, one after the other.
    number: u64,
    state: State,
}

enum State {
    Unconnected,
    /// Everybody who needs it drives the same attempt.
    Dialling(Shared<BoxFuture<'static, RedisResult<MultiplexedConnection>>>),
    Connected(MultiplexedConnection),
}

impl Link {
    pub(super) fn new(config: &RedisConfig) -> Self {
        let bounds = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(config.connect))
            .set_response_timeout(Some(config.answer));
        let now = Mutex::new(Now { number: 0, state: State::Unconnected });
        Self { client: Arc::clone(&config.client), bounds, now }
    }

    /// The connection and its number. Dropping the future leaves the attempt to others.
    pub(super) async fn get(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let (number, dialled) = {
            let mut now = self.now();
            match &now.state {
                State::Connected(connection) => return Ok((connection.clone(), now.number)),
                State::Dialling(attempt) => (now.number, attempt.clone()),
                State::Unconnected => {
                    let (client, bounds) = (Arc::clone(&self.client), self.bounds.clone());
                    let attempt =
                        async move { client.get_multiplexed_async_connection_with_config(&bounds).await };
                    let attempt = attempt.boxed().shared();
                    *now = Now { number: now.number + 1, state: State::Dialling(attempt.clone()) };
                    (now.number, attempt)
                }
            }
        };
        let dialled = dialled.await;
        let mut now = self.now();
        if now.number == number && matches!(now.state, State::Dialling(_)) {
            now.state = match &dialled {
                Ok(connection) => State::Connected(connection.clone()),
                Err(_) => State::Unconnected,
            };
        }
        Ok((dialled?, number))
    }

    /// The next command dials anew, unless this connection was replaced already.
    pub(super) fn lost(&self, number: u64) {
        let mut now = self.now();
        if now.number == number {
            now.state = State::Unconnected;
        }
    }

    /// Takes the connection away, or gives up the attempt.
    pub(super) fn take(&self) -> Option<MultiplexedConnection> {
        match std::mem::replace(&mut self.now().state, State::Unconnected) {
            State::Connected(connection) => Some(connection),
            State::Dialling(_) | State::Unconnected => None,
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}
