//! Classification of errors: one table for the server's codes and the driver's errors, which answers three questions. What kind of
//! error is it ([`Class`])? May the failed work be tried again ([`Repeat`])? What happened to the session ([`Link`])? No answer
//! follows from another: a conflict may end its session, and a mistake may or may not cost the session.

use std::io::ErrorKind;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgSeverity};

use crate::deadline::DeadlineError;
use crate::role::NotWritable;

/// The kind of a failed statement or connection attempt.
///
/// The SQLSTATEs are those of PostgreSQL's manual, appendix A, "PostgreSQL Error Codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Class {
    /// No session was opened, so nothing was done: refused, not found, starting up, too many connections. Safe to
    /// repeat.
    NotReached,
    /// The session was lost. The running work may or may not have taken effect.
    Lost,
    /// The transaction was rolled back in favour of another (40001, 40P01). The whole transaction may be repeated.
    Conflict,
    /// A time limit or a cancel request ended the statement: `statement_timeout`, `lock_timeout`, `transaction_timeout`.
    TimedOut,
    /// A constraint was violated (class 23).
    Constraint,
    /// A value does not fit where the statement puts it: too long, out of range, malformed, a NUL in a text. These are the codes of
    /// class 22 that a correct statement can meet through a bad bound value. The other codes of class 22, such as a division by
    /// zero, are [`Class::Other`], since they are mistakes of the statement. So is a bad literal in the statement's own text.
    Value,
    /// The session may not write (25006): its server is a standby or was made read-only, or the transaction or the role is
    /// read-only by choice. [`Repeat`] tells these cases apart.
    ReadOnly,
    /// The server is out of disk space or memory (class 53). Nothing was done.
    Resources,
    /// The server will refuse again: wrong password, unknown database, TLS refused.
    Refused,
    /// The program asked the driver for something that it cannot do: too many bind values, a value that cannot be
    /// encoded, a type that the database does not have, COPY run as a query. Nothing was done.
    Misuse,
    /// Anything else: a mistake in the statement or its data.
    Other,
}

impl Class {
    /// The class in one word, as it is counted: `lost`, `timed_out`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReached => "not_reached",
            Self::Lost => "lost",
            Self::Conflict => "conflict",
            Self::TimedOut => "timed_out",
            Self::Constraint => "constraint",
            Self::Value => "value",
            Self::ReadOnly => "read_only",
            Self::Resources => "resources",
            Self::Refused => "refused",
            Self::Misuse => "misuse",
            Self::Other => "other",
        }
    }
}

/// Whether the failed work may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repeat {
    /// It would fail again, or do harm.
    Never,
    /// Nothing was done, and it may succeed at once.
    Soon,
    /// Nothing was done, and it may succeed after a wait.
    Later,
    /// It may have taken effect. Repeat it only if doing it twice is harmless.
    IfHarmless,
}

/// What happened to a session, from good to bad.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    #[default]
    Kept,
    /// The session works, but its server may be read-only: the role is queried before the next use.
    AskRole,
    /// The session must not be used again. Other sessions are not affected.
    Closed,
    /// The session is gone, and others may be, too.
    Lost,
}

/// The classification of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) class: Class,
    pub(crate) repeat: Repeat,
    pub(crate) link: Link,
}

const fn row(class: Class, repeat: Repeat, link: Link) -> Verdict {
    Verdict { class, repeat, link }
}

const OTHER: Verdict = row(Class::Other, Repeat::Never, Link::Kept);
const VALUE: Verdict = row(Class::Value, Repeat::Never, Link::Kept);
const LOST: Verdict = row(Class::Lost, Repeat::IfHarmless, Link::Lost);
const CONFLICT: Verdict = row(Class::Conflict, Repeat::Soon, Link::Kept);
const MISUSE: Verdict = row(Class::Misuse, Repeat::Never, Link::Kept);

/// The classification of the server's codes. A row of two characters covers all codes of that class without a row of their own. Codes
/// without any row are [`OTHER`]. A fatal error always loses the session, unless its row says [`Link::Closed`], which means that no
/// other session is affected.
const CODES: &[(&str, Verdict)] = &[
    // Connections. For an error that is not fatal, see `Verdict::of_database`.
    ("08", LOST),
    // Data. A value may be a client's. The codes that are missing here are mistakes of the statement itself: arithmetic, a function's argument, a path.
    ("22001", VALUE), // string_data_right_truncation: too long for varchar(n)
    ("22003", VALUE), // numeric_value_out_of_range
    ("22007", VALUE), // invalid_datetime_format
    ("22008", VALUE), // datetime_field_overflow
    ("22009", VALUE), // invalid_time_zone_displacement_value
    ("22015", VALUE), // interval_field_overflow
    ("22018", VALUE), // invalid_character_value_for_cast
    ("2201B", VALUE), // invalid_regular_expression: a search term
    ("2201W", VALUE), // invalid_row_count_in_limit_clause: a page
    ("2201X", VALUE), // invalid_row_count_in_result_offset_clause
    ("22021", VALUE), // character_not_in_repertoire: a NUL in a text
    ("22025", VALUE), // invalid_escape_sequence: a pattern of LIKE that ends in a backslash
    ("22026", VALUE), // string_data_length_mismatch: bit(n)
    ("22030", VALUE), // duplicate_json_object_key_value
    ("22032", VALUE), // invalid_json_text
    ("2200L", VALUE), // not_an_xml_document
    ("2200M", VALUE), // invalid_xml_document
    ("2200N", VALUE), // invalid_xml_content
    ("22P02", VALUE), // invalid_text_representation
    ("22P04", VALUE), // bad_copy_file_format: data of a COPY
    ("22P05", VALUE), // untranslatable_character: \u0000 in a jsonb
    // Constraints.
    ("23", row(Class::Constraint, Repeat::Never, Link::Kept)),
    // Transactions.
    ("25006", row(Class::ReadOnly, Repeat::Never, Link::AskRole)),
    ("25P03", row(Class::Lost, Repeat::Later, Link::Closed)), // idle_in_transaction_session_timeout
    ("25P04", row(Class::TimedOut, Repeat::Never, Link::Closed)), // transaction_timeout, from 17 on
    // Login.
    ("28", row(Class::Refused, Repeat::Never, Link::Kept)),
    ("3D", row(Class::Refused, Repeat::Never, Link::Kept)),
    // Rollbacks.
    ("40", CONFLICT),
    ("40002", row(Class::Constraint, Repeat::Never, Link::Kept)),
    ("40003", row(Class::Lost, Repeat::IfHarmless, Link::Kept)), // statement_completion_unknown
    // Resources.
    ("53", row(Class::Resources, Repeat::Later, Link::Kept)),
    ("53300", row(Class::NotReached, Repeat::Later, Link::Kept)), // too_many_connections
    ("53400", OTHER), // configuration_limit_exceeded: such as temp_file_limit
    ("55P03", row(Class::TimedOut, Repeat::Never, Link::Kept)), // lock_not_available
    // Operator intervention.
    ("57014", row(Class::TimedOut, Repeat::Never, Link::Kept)), // query_canceled
    ("57P01", row(Class::Lost, Repeat::Later, Link::Lost)),     // admin_shutdown
    ("57P02", LOST),                                            // crash_shutdown
    ("57P03", row(Class::NotReached, Repeat::Later, Link::Kept)), // cannot_connect_now
    ("57P04", row(Class::Refused, Repeat::Never, Link::Lost)),  // database_dropped
    ("57P05", row(Class::Lost, Repeat::Later, Link::Closed)),   // idle_session_timeout
];

/// The classification of the driver's protocol errors, by the beginning of their text, since the driver has one variant for all. Texts
/// without a row are [`LOST`]. Rows with [`Link::Kept`] are raised before anything is sent.
const PROTOCOL: &[(&str, Verdict)] = &[
    ("PgConnection::run(): too many arguments for query", MISUSE),
    ("param_types.len() too large for binary protocol", MISUSE),
    ("message size out of range for protocol", MISUSE),
    ("Postgres protocol: error allocating", MISUSE),
    // Raised at login: the driver does not support the server's authentication method.
    ("unsupported authentication method", row(Class::Refused, Repeat::Never, Link::Lost)),
    ("unsupported SASL authentication", row(Class::Refused, Repeat::Never, Link::Lost)),
    // COPY that was run as a query: the driver cannot continue.
    ("execute: unexpected message: Copy", row(Class::Misuse, Repeat::Never, Link::Closed)),
];

impl Verdict {
    /// Classifies a driver error.
    pub(crate) fn of(error: &sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(database) => Self::of_database(error, database.as_ref()),
            sqlx::Error::Io(io)
                if io
                    .get_ref()
                    .is_some_and(<dyn std::error::Error + Send + Sync + 'static>::is::<DeadlineError>) =>
            {
                row(Class::TimedOut, Repeat::Never, Link::Kept)
            }
            sqlx::Error::Io(io) => Self::of_io(io.kind(), io.raw_os_error().is_some()),
            sqlx::Error::Tls(_) => row(Class::Refused, Repeat::Never, Link::Lost),
            sqlx::Error::Configuration(_) => row(Class::Refused, Repeat::Never, Link::Kept),
            sqlx::Error::PoolTimedOut => row(Class::NotReached, Repeat::Later, Link::Kept),
            sqlx::Error::PoolClosed => row(Class::NotReached, Repeat::Never, Link::Kept),
            sqlx::Error::Protocol(text) => PROTOCOL
                .iter()
                .find(|(beginning, _)| text.starts_with(beginning))
                .map_or(LOST, |(_, verdict)| *verdict),
            sqlx::Error::WorkerCrashed => LOST,
            // Raised before anything of the statement is sent.
            sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::InvalidArgument(_)
            | sqlx::Error::InvalidSavePointStatement
            | sqlx::Error::AnyDriverError(_) => MISUSE,
            // The server is in another state than the driver expects.
            sqlx::Error::BeginFailed => row(Class::Other, Repeat::Never, Link::Closed),
            // Errors about rows and columns, after the answer was read.
            _ => OTHER,
        }
    }

    /// Classifies the error of a statement on an existing session.
    pub(crate) fn of_statement(error: &sqlx::Error) -> Self {
        match Self::of(error) {
            // A network error may come after the statement was sent.
            Self { class: Class::NotReached, .. } if matches!(error, sqlx::Error::Io(_)) => LOST,
            verdict => verdict,
        }
    }

    fn of_database(error: &sqlx::Error, database: &dyn DatabaseError) -> Self {
        let Some(code) = database.code() else { return OTHER };
        let is_fatal = is_fatal(error);
        let verdict = match code.as_ref() {
            "08P01" if is_fatal && was_rejected_by_pooler(database.message()) => {
                row(Class::NotReached, Repeat::Later, Link::Lost)
            }
            // The session continues: a protocol mistake, or an error of a foreign data wrapper.
            code if code.starts_with("08") && !is_fatal => OTHER,
            // The bad value is a literal in the statement's text.
            code if Self::of_sqlstate(code).class == Class::Value && has_position(database) => OTHER,
            "25006" if NotWritable::is(database) => row(Class::ReadOnly, Repeat::Later, Link::AskRole),
            code => Self::of_sqlstate(code),
        };
        if is_fatal && verdict.link < Link::Closed { Self { link: Link::Lost, ..verdict } } else { verdict }
    }

    fn of_sqlstate(code: &str) -> Self {
        let find = |code: &str| CODES.iter().find(|(row, _)| *row == code);
        find(code).or_else(|| find(code.get(..2)?)).map_or(OTHER, |(_, verdict)| *verdict)
    }

    fn of_io(kind: ErrorKind, from_os: bool) -> Self {
        let not_reached = row(Class::NotReached, Repeat::Later, Link::Lost);
        match kind {
            // A missing socket file means that the server is not up yet.
            ErrorKind::ConnectionRefused
            | ErrorKind::NotFound
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => not_reached,
            // rustls's errors about certificates and alerts have this kind.
            ErrorKind::PermissionDenied | ErrorKind::InvalidData => {
                row(Class::Refused, Repeat::Never, Link::Lost)
            }
            // The resolver's errors have no code: the name may become known while a cluster starts.
            _ if !from_os && kind != ErrorKind::UnexpectedEof => not_reached,
            _ => LOST,
        }
    }

    /// The class for choosing the pause, if the work may be tried again.
    pub(crate) fn retry_class(self) -> Option<Class> {
        (self.repeat != Repeat::Never).then_some(self.class)
    }

    /// The classification of a transaction that lost against another and may be repeated.
    pub(crate) const fn conflict() -> Self {
        CONFLICT
    }
}

impl Class {
    /// Classifies a driver error.
    #[must_use]
    pub fn of(error: &sqlx::Error) -> Self {
        Verdict::of(error).class
    }

    /// Classifies a five-character SQLSTATE. An unknown code has the class of its first two characters.
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Self {
        Verdict::of_sqlstate(code).class
    }

    /// Whether waiting may help.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NotReached | Self::Lost | Self::Conflict | Self::Resources)
    }
}

/// Whether a pooler had no session for a statement, and therefore did not send it. `PgBouncer` uses one code for all its own errors,
/// with these English texts.
fn was_rejected_by_pooler(message: &str) -> bool {
    [
        "query_wait_timeout",
        "server login has been failing",
        "pgbouncer cannot connect to server",
        "no more connections allowed",
    ]
    .iter()
    .any(|reason| message.starts_with(reason))
}

/// Whether the server ended the session with this error. The severity decides and not the code: 08P01 may be raised for a wrong
/// number of parameters, and a conflict on a standby may end the session.
pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the server refused a commit, so that nothing is stored. An error that ends the session is no refusal: the commit may have
/// been stored before, whatever the code.
pub(crate) fn refuses(error: &sqlx::Error) -> bool {
    let is_answer = matches!(error, sqlx::Error::Database(_)) && !is_fatal(error);
    is_answer && Verdict::of_statement(error).repeat != Repeat::IfHarmless
}

/// Whether the error has a position in the statement's text. Then the server found it before it ran anything, so no bound value
/// caused it.
fn has_position(error: &dyn DatabaseError) -> bool {
    let position = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::position);
    matches!(position, Some(PgErrorPosition::Original(_)))
}

/// Whether a statement failed before it ran because its prepared form is no longer valid: a table has changed
/// its columns (0A000, raised by `RevalidateCachedQuery`), or the server has forgotten the statement (26000, raised by
/// `FetchPreparedStatement`). The check uses the routine, since 0A000 has many causes, a function may raise either code halfway
/// through its work, and the message depends on the server's language.
pub(crate) fn is_stale_plan(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    match error.code().as_deref() {
        Some("0A000") => routine == Some("RevalidateCachedQuery"),
        Some("26000") => routine == Some("FetchPreparedStatement"),
        _ => false,
    }
}

/// Whether a statement failed before it ran because a type of its values no longer exists: it was dropped and created
/// again, and the driver still sends the number of the old type. PostgreSQL does not translate this message (`elog`).
pub(crate) fn is_stale_type(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().as_deref() == Some("XX000") && error.message().starts_with("cache lookup failed for type ")
}

/// Whether a server that refused a session with this code will refuse it again. Internal errors and timeouts may be temporary.
pub(crate) fn is_refusal(code: &str) -> bool {
    let verdict = Verdict::of_sqlstate(code);
    let is_inside = ["XX", "58", "F0"].iter().any(|class| code.starts_with(class));
    verdict.repeat == Repeat::Never && verdict.class != Class::TimedOut && !is_inside
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of PostgreSQL 14 to 18 (`errcodes.txt`), each with its expected classification.
    const ROWS: &[(Verdict, &str)] = &[
        (
            VALUE,
            "22001 22003 22007 22008 22009 2200L 2200M 2200N 22015 22018 2201B 2201W 2201X 22021 22025 22026 \
             22030 22032 22P02 22P04 22P05",
        ),
        (row(Class::ReadOnly, Repeat::Never, Link::AskRole), "25006"),
        (row(Class::Lost, Repeat::Later, Link::Closed), "25P03 57P05"),
        (row(Class::TimedOut, Repeat::Never, Link::Closed), "25P04"),
        (row(Class::TimedOut, Repeat::Never, Link::Kept), "55P03 57014"),
        (
            row(Class::Constraint, Repeat::Never, Link::Kept),
            "23000 23001 23502 23503 23505 23514 23P01 40002",
        ),
        (row(Class::Refused, Repeat::Never, Link::Kept), "28000 28P01 3D000"),
        (row(Class::Refused, Repeat::Never, Link::Lost), "57P04"),
        (CONFLICT, "40000 40001 40P01"),
        (row(Class::Lost, Repeat::IfHarmless, Link::Kept), "40003"),
        (row(Class::Resources, Repeat::Later, Link::Kept), "53000 53100 53200"),
        (row(Class::NotReached, Repeat::Later, Link::Kept), "53300 57P03"),
        (row(Class::Lost, Repeat::Later, Link::Lost), "57P01"),
        (LOST, "08000 08001 08003 08004 08006 08007 08P01 57P02"),
        (
            OTHER,
            "00000 01000 01003 01004 01006 01007 01008 0100C 01P01 02000 02001 03000 09000 0A000 0B000 0F000 \
             0F001 0L000 0LP01 0P000 0Z000 0Z002 10608 20000 21000 22000 22002 22004 22005 2200B 2200C 2200D \
             2200F 2200G 2200H 2200S 2200T 22010 22011 22012 22013 22014 22016 22019 2201E 2201F 2201G 22022 \
             22023 22024 22027 2202E 2202G 2202H 22031 22033 22034 22035 22036 22037 22038 22039 2203A 2203B \
             2203C 2203D 2203E 2203F 2203G 22P01 22P03 22P06 22P07 24000 25000 25001 25002 25003 25004 25005 \
             25007 25008 25P01 25P02 26000 27000 2B000 2BP01 2D000 2F000 2F002 2F003 2F004 2F005 34000 38000 \
             38001 38002 38003 38004 39000 39001 39004 39P01 39P02 39P03 3B000 3B001 3F000 42000 42501 42601 \
             42602 42611 42622 42701 42702 42703 42704 42710 42712 42723 42725 42803 42804 42809 42830 42846 \
             42883 428C9 42939 42P01 42P02 42P03 42P04 42P05 42P06 42P07 42P08 42P09 42P10 42P11 42P12 42P13 \
             42P14 42P15 42P16 42P17 42P18 42P19 42P20 42P21 42P22 44000 53400 54000 54001 54011 54023 55000 \
             55006 55P02 55P04 57000 58000 58030 58P01 58P02 58P03 72000 F0000 F0001 HV000 HV001 HV002 HV004 \
             HV005 HV006 HV007 HV008 HV009 HV00A HV00B HV00C HV00D HV00J HV00K HV00L HV00M HV00N HV00P HV00Q \
             HV00R HV010 HV014 HV021 HV024 HV090 HV091 P0000 P0001 P0002 P0003 P0004 XX000 XX001 XX002",
        ),
    ];

    #[test]
    fn every_code_of_the_server_is_classified() {
        let mut count = 0;
        for (verdict, codes) in ROWS {
            for code in codes.split_whitespace() {
                assert_eq!(Verdict::of_sqlstate(code), *verdict, "{code}");
                count += 1;
            }
        }
        assert_eq!(count, 264, "all codes, each once");
    }

    #[test]
    fn every_row_applies_to_a_code() {
        for (at, (code, verdict)) in CODES.iter().enumerate() {
            assert!(CODES[..at].iter().all(|(other, _)| other != code), "{code} has two rows");
            let applies = |full: &str| full.starts_with(code) && Verdict::of_sqlstate(full) == *verdict;
            assert!(
                ROWS.iter().any(|(_, codes)| codes.split_whitespace().any(applies)),
                "{code} applies to no code"
            );
        }
    }

    #[test]
    fn an_unknown_code_has_the_row_of_its_class() {
        for (code, verdict) in [
            ("23XYZ", row(Class::Constraint, Repeat::Never, Link::Kept)),
            ("40XYZ", CONFLICT),
            ("53XYZ", row(Class::Resources, Repeat::Later, Link::Kept)),
            ("08XYZ", LOST),
            ("22XYZ", OTHER),
            ("57XYZ", OTHER),
            ("ZZ000", OTHER),
            ("", OTHER),
            ("é", OTHER),
        ] {
            assert_eq!(Verdict::of_sqlstate(code), verdict, "{code}");
        }
    }

    #[test]
    fn errors_raised_before_anything_is_sent_keep_the_session() {
        let protocol = |text: &str| sqlx::Error::Protocol(text.to_owned());
        for (error, verdict) in [
            (protocol("PgConnection::run(): too many arguments for query: 70000 (x:1)"), MISUSE),
            (protocol("param_types.len() too large for binary protocol: 70000"), MISUSE),
            (protocol("message size out of range for protocol: 2147483648"), MISUSE),
            (protocol("Postgres protocol: error allocating 9 bytes for encoding message Bind: no"), MISUSE),
            (sqlx::Error::Encode("no".into()), MISUSE),
            (sqlx::Error::TypeNotFound { type_name: "mood".to_owned() }, MISUSE),
            (sqlx::Error::InvalidArgument("no".to_owned()), MISUSE),
            (sqlx::Error::InvalidSavePointStatement, MISUSE),
            (sqlx::Error::AnyDriverError("no".into()), MISUSE),
            // The errors below are raised after something was sent.
            (
                protocol("execute: unexpected message: CopyInResponse"),
                row(Class::Misuse, Repeat::Never, Link::Closed),
            ),
            (
                protocol("execute: unexpected message: CopyOutResponse"),
                row(Class::Misuse, Repeat::Never, Link::Closed),
            ),
            (
                protocol("unsupported authentication method: Gss"),
                row(Class::Refused, Repeat::Never, Link::Lost),
            ),
            (
                protocol("unsupported SASL authentication mechanisms: X"),
                row(Class::Refused, Repeat::Never, Link::Lost),
            ),
            (protocol("unknown message type: '\\0'"), LOST),
            (protocol("execute: unexpected message: BackendKeyData"), LOST),
            (sqlx::Error::WorkerCrashed, LOST),
            (sqlx::Error::BeginFailed, row(Class::Other, Repeat::Never, Link::Closed)),
            (sqlx::Error::RowNotFound, OTHER),
            (sqlx::Error::ColumnNotFound("n".to_owned()), OTHER),
            (sqlx::Error::ColumnIndexOutOfBounds { index: 1, len: 1 }, OTHER),
            (sqlx::Error::ColumnDecode { index: "n".to_owned(), source: "no".into() }, OTHER),
            (sqlx::Error::Decode("no".into()), OTHER),
            // The errors below do not concern a statement.
            (sqlx::Error::Configuration("no".into()), row(Class::Refused, Repeat::Never, Link::Kept)),
            (sqlx::Error::Tls("no".into()), row(Class::Refused, Repeat::Never, Link::Lost)),
            (sqlx::Error::PoolTimedOut, row(Class::NotReached, Repeat::Later, Link::Kept)),
            (sqlx::Error::PoolClosed, row(Class::NotReached, Repeat::Never, Link::Kept)),
        ] {
            assert_eq!(Verdict::of(&error), verdict, "{error:?}");
        }
    }

    #[test]
    fn permanent_and_temporary_refusals_are_told_apart() {
        let permanent =
            ["42501", "55000", "42704", "22023", "28000", "28P01", "3D000", "55P02", "57P04", "P0001"];
        let temporary =
            ["53300", "57P03", "57P01", "53200", "53100", "57014", "40001", "XX000", "58P01", "F0000"];
        for code in permanent {
            assert!(is_refusal(code), "{code}");
        }
        for code in temporary {
            assert!(!is_refusal(code), "{code}");
        }
    }

    #[test]
    fn a_network_error_during_a_statement_loses_the_link() {
        let refused = sqlx::Error::Io(std::io::Error::from(ErrorKind::ConnectionRefused));

        assert_eq!(Verdict::of(&refused), row(Class::NotReached, Repeat::Later, Link::Lost));
        assert_eq!(Verdict::of_statement(&refused), LOST);
    }

    #[test]
    fn a_missing_socket_is_not_reached_and_a_forbidden_socket_is_refused() {
        let missing = sqlx::Error::Io(std::io::Error::from(ErrorKind::NotFound));
        let forbidden = sqlx::Error::Io(std::io::Error::from_raw_os_error(13));

        assert_eq!(Class::of(&missing), Class::NotReached);
        assert_eq!(Class::of(&forbidden), Class::Refused);
    }

    #[test]
    fn a_reset_link_is_lost_and_an_unknown_name_is_not_reached() {
        let reset = sqlx::Error::Io(std::io::Error::from_raw_os_error(104));
        let unknown = sqlx::Error::Io(std::io::Error::other("failed to lookup address information"));
        let cut = sqlx::Error::Io(std::io::Error::from(ErrorKind::UnexpectedEof));

        assert_eq!(Class::of(&reset), Class::Lost);
        assert_eq!(Class::of(&unknown), Class::NotReached);
        assert_eq!(Class::of(&cut), Class::Lost);
    }
}
