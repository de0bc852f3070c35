//! From a signal to the end of the process's work.

use std::time::Instant;

use tokio::time::timeout;

use crate::shutdown::seconds;
use crate::signals::{Signal, Signals};
use crate::{Db, Deadlines, Shutdown};

/// How a service ended, and its database with it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Ended<T> {
    /// What the service returned. `None` when it did not within its deadline, or before the second signal.
    pub service: Option<T>,
    /// The signal that asked it to end. `None` when it ended by itself, or when [`Db::closing`] was cancelled.
    pub first_signal: Option<Signal>,
    /// The second signal, which ended the wait.
    pub second_signal: Option<Signal>,
    /// How pools and bus were closed. `None` when the second signal came before they were.
    pub closed: Option<Shutdown>,
}

impl<T> Ended<T> {
    /// Whether everything was finished and closed in its time.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.service.is_some() && self.closed.as_ref().is_some_and(Shutdown::is_clean)
    }

    /// What the process may exit with: 0, or what a shell gives a process that the second signal ended.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        self.second_signal.map_or(0, Signal::exit_code)
    }
}

impl Db {
    /// Runs the service until it is asked to end, and ends it: what a service's `main` comes to.
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
    /// `service` is whatever ends when [`Db::closing`] is cancelled: a server with its requests and streams, workers, or all of
    /// them joined. Each phase begins when the one before has ended, or its [deadline](Deadlines) has passed, and is a line in
    /// the log, which says how long it took and what it cut:
    ///
    /// 1. At the signal, `closing` is cancelled: nothing new is admitted, streams end. When `service` has ended by itself, or
    ///    somebody else has cancelled `closing`, this is where it goes on.
    /// 2. `service` is run to its end. At its deadline it is dropped; tasks that it has spawned go on into the next phase.
    /// 3. The pools close: no more connections, those who wait are refused, work may finish, then it is cancelled and named.
    /// 4. The bus sends what the last transactions told it after their commit, and closes. Before the pools had closed, it would
    ///    have missed some of that.
    ///
    /// Signalled again, it returns at once and closes nothing more; that the process then ends, with
    /// [`Ended::exit_code`], is up to `main`. Statements that run on the server then end when the server notices.
    ///
    /// Cancel safe in that it may be called again, and goes on from where it was: what was begun stays so, and each phase that
    /// is not over has its whole time once more. `service` is dropped with the future: give it as a `Pin<&mut _>`, made by
    /// [`std::pin::pin!`], to keep it, also beyond its deadline or a second signal. One that has ended is not to be given again,
    /// as no future may be polled after its end: [`std::future::ready`] then stands for it.
    pub async fn shutdown_on_signal<F: IntoFuture>(
        &self,
        signals: &mut Signals,
        deadlines: Deadlines,
        service: F,
    ) -> Ended<F::Output> {
        // In a box: at its deadline it is dropped, and lets go of what it holds before the pools close.
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
            Some(signal) => tracing::info!(%signal, ?deadlines, "shutting down: asked to"),
            None if service.is_some() => tracing::info!(?deadlines, "shutting down: the service has ended"),
            None => tracing::info!(?deadlines, "shutting down: it was begun"),
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
                    tracing::warn!(took, "service cut off: it did not end in time");
                }
            }
            // In a box, too: it is large, and would be part of `main`'s future from the beginning.
            Box::pin(self.close(deadlines.pools, || deadlines.bus)).await
        };
        let (second_signal, closed) = tokio::select! {
            biased;
            signal = second_signal(signals, &mut first_signal) => (Some(signal), None),
            closed = finish => (None, Some(closed)),
        };
        if let Some(signal) = second_signal {
            tracing::warn!(%signal, "signalled again: ending at once");
        }
        Ended { service, first_signal, second_signal, closed }
    }
}

/// Waits for the signal after the first, which may still have to come.
async fn second_signal(signals: &mut Signals, first: &mut Option<Signal>) -> Signal {
    loop {
        let signal = signals.next().await;
        if first.is_some() {
            return signal;
        }
        *first = Some(signal);
    }
}
