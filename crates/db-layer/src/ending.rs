//! Ending a service and its database on a signal.

use std::time::Instant;

use tokio::time::timeout;

use crate::shutdown::seconds;
use crate::signals::{Signal, Signals};
use crate::{Db, Deadlines, Shutdown};

/// How a service ended, and its database with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ended<T> {
    /// What the service returned. `None` when it did not return before its deadline or before the second signal.
    pub service: Option<T>,
    /// The signal that began the shutdown. `None` when the service ended by itself, or when [`Db::closing`] was cancelled.
    pub first_signal: Option<Signal>,
    /// The second signal, which ended the shutdown early.
    pub second_signal: Option<Signal>,
    /// How pools and bus were closed. `None` when the second signal came first.
    pub closed: Option<Shutdown>,
}

impl<T> Ended<T> {
    /// Whether the service ended and everything was closed in time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.service.is_some() && self.closed.as_ref().is_some_and(Shutdown::is_clean)
    }

    /// The exit code for the process: 0, or 128 and the number of the second signal, as shells report it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.second_signal.map_or(0, Signal::exit_code)
    }
}

impl Db {
    /// Runs the service until a signal, and then shuts down the service and the database: the body of a service's `main`.
    ///
    /// ```no_run
    /// # async fn run(db: db_layer::Db, listener: tokio::net::TcpListener, router: axum::Router) -> std::io::Result<()> {
    /// use db_layer::{Deadlines, Signals};
    ///
    /// let mut signals = Signals::catch()?;
    /// let serving = axum::serve(listener, router).with_graceful_shutdown(db.closing().cancelled_owned());
    /// let ended = db.shutdown_on_signal(&mut signals, Deadlines::default(), serving).await;
    /// # drop(ended);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// `service` is a future that ends when [`Db::closing`] is cancelled: a server with its requests and streams, workers, or
    /// all of them joined. Each phase begins when the one before has ended or its [deadline](Deadlines) has passed. Each logs
    /// how long it took and what it cancelled:
    ///
    /// 1. At the signal, `closing` is cancelled: nothing new is accepted, streams end. This phase also ends when `service`
    ///    returns by itself, or when other code cancels `closing`.
    /// 2. `service` runs to its end. At its deadline it is dropped; tasks that it has spawned go on into the next phase.
    /// 3. The pools close: they give out no more connections and refuse waiting callers. Running work may finish until near the
    ///    deadline; the rest is cancelled and named.
    /// 4. The bus sends the notifications that the last transactions queued at their commit, and closes. It closes after the
    ///    pools, so that none of these is lost.
    ///
    /// A second signal makes it return at once, without closing the rest. `main` then ends the process with
    /// [`Ended::exit_code`]. Statements that still run end when the server notices that the connection is gone.
    ///
    /// Cancel safe: call it again, and it goes on from where it was. What has begun stays so, and each phase that is not over
    /// gets its whole time again. `service` is dropped with the future: to keep it, also beyond its deadline or a second
    /// signal, pass a `Pin<&mut _>` made by [`std::pin::pin!`]. Do not pass a future that has ended, since polling it again
    /// panics: pass [`std::future::ready`] instead.
    pub async fn shutdown_on_signal<F: IntoFuture>(
        &self,
        signals: &mut Signals,
        deadlines: Deadlines,
        service: F,
    ) -> Ended<F::Output> {
        // Boxed, so that it can be dropped at its deadline and releases what it holds before the pools close.
        let mut running = Box::pin(service.into_future());
        let closing = self.closing();
        let (mut service, mut first_signal) = (None, None);
        tokio::select! {
            biased;
            () = closing.cancelled() => {}
            signal = signals.next() => first_signal = Some(signal),
            output = &mut running => service = Some(output),
        }
        match first_signal {
            Some(signal) => tracing::info!(%signal, ?deadlines, "shutting down: signal received"),
            None if service.is_some() => tracing::info!(?deadlines, "shutting down: the service has ended"),
            None => tracing::info!(?deadlines, "shutting down: `Db::closing` was cancelled"),
        }
        closing.cancel();

        let finish = async {
            if service.is_none() {
                let started = Instant::now();
                service = timeout(deadlines.service, running).await.ok();
                let took = seconds(started.elapsed());
                if service.is_some() {
                    tracing::info!(took, "service ended");
                } else {
                    tracing::warn!(took, "service cancelled: it did not end before its deadline");
                }
            }
            // Boxed, too, to keep it out of the size of `main`'s future.
            Box::pin(self.close(deadlines.pools, || deadlines.bus)).await
        };
        let (second_signal, closed) = tokio::select! {
            biased;
            signal = second_signal(signals, &mut first_signal) => (Some(signal), None),
            closed = finish => (None, Some(closed)),
        };
        if let Some(signal) = second_signal {
            tracing::warn!(%signal, "second signal: ending without closing the rest");
        }
        Ended { service, first_signal, second_signal, closed }
    }
}

/// Waits for the second signal. The first may still have to come.
async fn second_signal(signals: &mut Signals, first: &mut Option<Signal>) -> Signal {
    loop {
        let signal = signals.next().await;
        if first.is_some() {
            return signal;
        }
        *first = Some(signal);
    }
}
