//! What kinds of errors there are, for programs.

/// The kind of an error: what a program may decide by. The `type` of its answer is `urn:db-axum:` and the kind, and stays the same
/// across versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    NotFound,
    Taken,
    NotAllowed,
    BadValue,
    Unavailable,
    Overloaded,
    TimedOut,
    MayBeDone,
    Internal,
    NoSuchLog,
    LogRemoved,
    LogConflict,
    EventTooLarge,
    BadEvent,
    BadRequest,
    #[cfg(feature = "rate-limit")]
    TooManyRequests,
    NoSuchAddress,
    NoSuchMethod,
}

impl Kind {
    /// The `type` of the answer (RFC 9457, section 3.1.1).
    pub(crate) const fn uri(self) -> &'static str {
        match self {
            Self::NotFound => "urn:db-axum:not-found",
            Self::Taken => "urn:db-axum:taken",
            Self::NotAllowed => "urn:db-axum:not-allowed",
            Self::BadValue => "urn:db-axum:bad-value",
            Self::Unavailable => "urn:db-axum:unavailable",
            Self::Overloaded => "urn:db-axum:overloaded",
            Self::TimedOut => "urn:db-axum:timed-out",
            Self::MayBeDone => "urn:db-axum:may-be-done",
            Self::Internal => "urn:db-axum:internal",
            Self::NoSuchLog => "urn:db-axum:no-such-log",
            Self::LogRemoved => "urn:db-axum:log-removed",
            Self::LogConflict => "urn:db-axum:log-conflict",
            Self::EventTooLarge => "urn:db-axum:event-too-large",
            Self::BadEvent => "urn:db-axum:bad-event",
            Self::BadRequest => "urn:db-axum:bad-request",
            #[cfg(feature = "rate-limit")]
            Self::TooManyRequests => "urn:db-axum:too-many-requests",
            Self::NoSuchAddress => "urn:db-axum:no-such-address",
            Self::NoSuchMethod => "urn:db-axum:no-such-method",
        }
    }
}
