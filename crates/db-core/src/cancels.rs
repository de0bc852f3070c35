//! The state of a session's cancel requests.

use tokio::sync::watch;

/// The state of a session's cancel request. The session holds it, because the caller that asked may be dropped. While a request is
/// under way, the session must not be used; after the answer, one more round trip is needed first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cancel {
    /// No request is under way, and no earlier request can hit a later statement.
    #[default]
    None,
    /// A request waits to be sent. An earlier request may still need its round trip.
    Queued { after_another: bool },
    /// A request was sent.
    Sent,
    /// The server has signalled the session.
    Answered,
    /// The server refused to signal the session.
    Refused,
    /// The session no longer exists at the server.
    Gone,
    /// The request was sent and never answered: the server may carry it out at any time.
    Unanswered,
}

/// The cancel requests of a session. At most one is under way at a time.
#[derive(Debug)]
pub(crate) struct Cancels(watch::Sender<Cancel>);

impl Cancels {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Cancel::None))
    }

    #[cfg(test)]
    pub(crate) fn set(&self, cancel: Cancel) {
        self.0.send_replace(cancel);
    }

    /// Moves to the next state if `next` returns one. Returns whether it did.
    fn step(&self, next: impl FnOnce(Cancel) -> Option<Cancel>) -> bool {
        self.0.send_if_modified(|cancel| match next(*cancel) {
            Some(next) => {
                *cancel = next;
                true
            }
            None => false,
        })
    }

    /// Queues a request. Returns whether it must be sent to the task.
    pub(crate) fn queue(&self) -> bool {
        self.step(|cancel| match cancel {
            Cancel::None => Some(Cancel::Queued { after_another: false }),
            Cancel::Answered | Cancel::Refused => Some(Cancel::Queued { after_another: true }),
            _ => None,
        })
    }

    /// Marks the request as sent. Returns whether it was still waiting to be sent.
    pub(crate) fn send(&self) -> bool {
        self.step(|cancel| matches!(cancel, Cancel::Queued { .. }).then_some(Cancel::Sent))
    }

    /// Withdraws a request that was not sent.
    pub(crate) fn withdraw(&self) {
        self.step(|cancel| match cancel {
            Cancel::Queued { after_another: true } => Some(Cancel::Answered),
            Cancel::Queued { after_another: false } => Some(Cancel::None),
            _ => None,
        });
    }

    pub(crate) fn answer(&self, answer: Cancel) {
        self.step(|cancel| (cancel == Cancel::Sent).then_some(answer));
    }

    pub(crate) fn is_queued(&self) -> bool {
        matches!(*self.0.borrow(), Cancel::Queued { .. })
    }

    /// Withdraws a request that was not sent, or waits for the answer to one that was.
    pub(crate) async fn settled(&self) -> Cancel {
        self.withdraw();
        self.answered().await
    }

    /// Waits until no request is queued or sent.
    pub(crate) async fn answered(&self) -> Cancel {
        let mut watched = self.0.subscribe();
        let seen = watched.wait_for(|cancel| !matches!(cancel, Cancel::Queued { .. } | Cancel::Sent)).await;
        // `self` is the sender, so the channel is open.
        seen.map_or(Cancel::Unanswered, |cancel| *cancel)
    }

    /// Records that a round trip which began after the answer has ended: the signal cannot hit a later statement.
    pub(crate) fn mark_used_up(&self) {
        self.step(|cancel| matches!(cancel, Cancel::Answered | Cancel::Refused).then_some(Cancel::None));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cancels(at: Cancel) -> Cancels {
        Cancels(watch::Sender::new(at))
    }

    fn now(cancels: &Cancels) -> Cancel {
        *cancels.0.borrow()
    }

    #[test]
    fn only_a_request_that_was_not_sent_is_withdrawn() {
        for (from, to) in [
            (Cancel::Queued { after_another: false }, Cancel::None),
            (Cancel::Queued { after_another: true }, Cancel::Answered),
            (Cancel::Sent, Cancel::Sent),
            (Cancel::Unanswered, Cancel::Unanswered),
        ] {
            let cancels = cancels(from);
            cancels.withdraw();
            assert_eq!(now(&cancels), to, "{from:?}");
        }
    }

    #[test]
    fn a_session_has_one_request_at_a_time_and_none_after_an_unanswered_one() {
        for (from, is_new) in [
            (Cancel::None, true),
            (Cancel::Queued { after_another: false }, false),
            (Cancel::Sent, false),
            (Cancel::Answered, true),
            (Cancel::Refused, true),
            (Cancel::Gone, false),
            (Cancel::Unanswered, false),
        ] {
            assert_eq!(cancels(from).queue(), is_new, "{from:?}");
        }
    }

    #[test]
    fn only_a_round_trip_after_the_answer_makes_a_session_usable_again() {
        for (from, to) in [
            (Cancel::Answered, Cancel::None),
            (Cancel::Refused, Cancel::None),
            (Cancel::Sent, Cancel::Sent),
            (Cancel::Unanswered, Cancel::Unanswered),
        ] {
            let cancels = cancels(from);
            cancels.mark_used_up();
            assert_eq!(now(&cancels), to, "{from:?}");
        }
    }
}
