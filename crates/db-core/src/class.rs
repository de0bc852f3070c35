//! What an error means for the one who has to decide what to do next: one table, for the server's codes and the driver's
//! errors, with a column for each of three questions. What kind of error is it ([`Class`])? May what failed be tried again
//! ([`Repeat`])? What has become of the session ([`Link`])? No answer follows from another: a conflict may be a session's last
//! word, and a mistake may cost the session or not.

use std::io::ErrorKind;

use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition, PgSeverity};

use crate::deadline::DeadlineError;
use crate::role::NotWritable;

/// The kind of a failed statement or connection attempt.
///
/// The SQLSTATEs are those of PostgreSQL's manual, appendix A, "PostgreSQL Error Codes".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Class {
    /// No session was made, so nothing was done: refused, not found, starting up, too many connections. Safe to
    /// repeat.
    NotReached,
    /// The session was lost. Whatever was under way may have happened or not.
    Lost,
    /// The transaction was rolled back in favour of another one (40001, 40P01). The whole of it may be repeated.
    Conflict,
    /// A limit of time ended it: `statement_timeout`, `lock_timeout`, `transaction_timeout`, a cancel request.
    TimedOut,
    /// A constraint was not met (class 23).
    Constraint,
    /// A value does not fit where the statement puts it: too long, out of range, not of its type's form, a NUL in a text (those
    /// codes of class 22 that a good statement meets with a bad bound value). The other codes of class 22, such as a
    /// division by zero, are [`Class::Other`]: they are mistakes of the statement. So is a literal of the statement's own
    /// text that does not fit.
    Value,
    /// The session may not write (25006): its server is a standby or was made read-only, or the transaction or the role is
    /// read-only by choice. [`Repeat`] tells which.
    ReadOnly,
    /// The server is out of disk space or memory (class 53). Nothing was done.
    Resources,
    /// The server will say the same next time: wrong password, unknown database, TLS refused.
    Refused,
    /// The program asked the driver for what it cannot do: more values than a statement can have, a value that cannot be
    /// encoded, a type that the database does not have, COPY as if it were a query. Nothing was done.
    Misuse,
    /// Anything else: a mistake in the statement or its data.
    Other,
}

/// Whether what failed may be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repeat {
    /// It would fail again, or do harm.
    Never,
    /// Nothing was done, and nothing is in the way any more: at once.
    Soon,
    /// Nothing was done, and waiting may mend what was in the way.
    Later,
    /// It may have been done. Only what is harmless when it is done twice may be tried again.
    IfHarmless,
}

/// What has become of a session, from good to bad.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Link {
    #[default]
    Kept,
    /// It works, and its server may be one that takes no writes: it is asked before its next use.
    AskRole,
    /// Nobody else is to have it. Nothing follows for other sessions.
    Closed,
    /// It is gone, and others may be, too.
    Lost,
}

/// The answers to all three questions.
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

/// The rows of the server's codes; two characters are all codes of that class which have no row of their own. What has neither
/// is [`OTHER`]. A session that ends with an error is lost whatever the row says, unless the row says that only this one is
/// meant.
const CODES: &[(&str, Verdict)] = &[
    // Connections. Of a session that goes on, see `Verdict::of`.
    ("08", LOST),
    // Data. A value may be a client's; what is not here is arithmetic, an argument of a function, a path: the statement's own.
    ("22001", VALUE), // string_data_right_truncation: too long for varchar(n)
    ("22003", VALUE), // numeric_value_out_of_range
    ("22007", VALUE), // invalid_datetime_format
    ("22008", VALUE), // datetime_field_overflow
    ("22009", VALUE), // invalid_time_zone_displacement_value
    ("22015", VALUE), // interval_field_overflow
    ("22018", VALUE), // invalid_character_value_for_cast
    ("2201B", VALUE), // invalid_regular_expression: what a client searches for
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
    ("22P04", VALUE), // bad_copy_file_format: rows that were sent
    ("22P05", VALUE), // untranslatable_character: \u0000 in a jsonb
    // Constraints.
    ("23", row(Class::Constraint, Repeat::Never, Link::Kept)),
    // Transactions.
    ("25006", row(Class::ReadOnly, Repeat::Never, Link::AskRole)),
    ("25P03", row(Class::Lost, Repeat::Later, Link::Closed)), // idle_in_transaction_session_timeout
    ("25P04", row(Class::TimedOut, Repeat::Never, Link::Closed)), // transaction_timeout, from 17 on
    // Logging in.
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
    // What an operator does.
    ("57014", row(Class::TimedOut, Repeat::Never, Link::Kept)), // query_canceled
    ("57P01", row(Class::Lost, Repeat::Later, Link::Lost)),     // admin_shutdown
    ("57P02", LOST),                                            // crash_shutdown
    ("57P03", row(Class::NotReached, Repeat::Later, Link::Kept)), // cannot_connect_now
    ("57P04", row(Class::Refused, Repeat::Never, Link::Lost)),  // database_dropped
    ("57P05", row(Class::Lost, Repeat::Later, Link::Closed)),   // idle_session_timeout
];

/// The rows of what the driver says of the protocol, by how its text begins: it has one variant for all of it. What has no row is
/// [`LOST`]. Those with [`Link::Kept`] are said before anything is sent.
const PROTOCOL: &[(&str, Verdict)] = &[
    ("PgConnection::run(): too many arguments for query", MISUSE),
    ("param_types.len() too large for binary protocol", MISUSE),
    ("message size out of range for protocol", MISUSE),
    ("Postgres protocol: error allocating", MISUSE),
    // Said as the session begins: the server wants a proof that the driver does not have.
    ("unsupported authentication method", row(Class::Refused, Repeat::Never, Link::Lost)),
    ("unsupported SASL authentication", row(Class::Refused, Repeat::Never, Link::Lost)),
    // COPY that was sent as a query: the driver does not know how to go on.
    ("execute: unexpected message: Copy", row(Class::Misuse, Repeat::Never, Link::Closed)),
];

impl Verdict {
    /// Judges a driver error.
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
            sqlx::Error::Protocol(said) => {
                PROTOCOL.iter().find(|(text, _)| said.starts_with(text)).map_or(LOST, |(_, verdict)| *verdict)
            }
            sqlx::Error::WorkerCrashed => LOST,
            // Said before anything of the statement is sent.
            sqlx::Error::Encode(_)
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::InvalidArgument(_)
            | sqlx::Error::InvalidSavePointStatement
            | sqlx::Error::AnyDriverError(_) => MISUSE,
            // The server is somewhere else than the driver takes it to be.
            sqlx::Error::BeginFailed => row(Class::Other, Repeat::Never, Link::Closed),
            // Said of rows and columns, once the answer was read.
            _ => OTHER,
        }
    }

    /// Judges the error of something that was sent, or was to be, on a session that was there.
    pub(crate) fn of_statement(error: &sqlx::Error) -> Self {
        match Self::of(error) {
            // What the network says then comes after the statement may have been sent.
            Self { class: Class::NotReached, .. } if matches!(error, sqlx::Error::Io(_)) => LOST,
            verdict => verdict,
        }
    }

    fn of_database(error: &sqlx::Error, database: &dyn DatabaseError) -> Self {
        let Some(code) = database.code() else { return OTHER };
        let is_fatal = is_fatal(error);
        let verdict = match code.as_ref() {
            "08P01" if is_fatal && was_turned_away(database.message()) => {
                row(Class::NotReached, Repeat::Later, Link::Lost)
            }
            // Of a session that goes on: a mistake in the protocol, or the trouble of a foreign data wrapper.
            code if code.starts_with("08") && !is_fatal => OTHER,
            // The statement's text has a literal that does not fit.
            code if Self::of_sqlstate(code).class == Class::Value && names_the_text(database) => OTHER,
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
            // A socket file that is not there yet is a server that is not there yet.
            ErrorKind::ConnectionRefused
            | ErrorKind::NotFound
            | ErrorKind::HostUnreachable
            | ErrorKind::NetworkUnreachable => not_reached,
            // What rustls says of certificates and alerts comes as invalid data.
            ErrorKind::PermissionDenied | ErrorKind::InvalidData => {
                row(Class::Refused, Repeat::Never, Link::Lost)
            }
            // The resolver's errors carry no number: a name that is not known yet, in a cluster that is starting.
            _ if !from_os && kind != ErrorKind::UnexpectedEof => not_reached,
            _ => LOST,
        }
    }

    /// The class that pauses are chosen by, if it may be tried again.
    pub(crate) fn retry_class(self) -> Option<Class> {
        (self.repeat != Repeat::Never).then_some(self.class)
    }

    /// Of a transaction that lost against another one, and may be run again.
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

    /// Classifies a five-character SQLSTATE. A code that is not known has the class of the codes that begin like it.
    #[must_use]
    pub fn of_sqlstate(code: &str) -> Self {
        Verdict::of_sqlstate(code).class
    }

    /// Whether waiting may mend it.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Self::NotReached | Self::Lost | Self::Conflict | Self::Resources)
    }
}

/// Whether a pooler says that it had no session for a statement, which it therefore did not send. `PgBouncer` has one code for
/// all that it says itself, and these texts, in no language but English.
fn was_turned_away(said: &str) -> bool {
    [
        "query_wait_timeout",
        "server login has been failing",
        "pgbouncer cannot connect to server",
        "no more connections allowed",
    ]
    .iter()
    .any(|reason| said.starts_with(reason))
}

/// Whether the server ended the session with this error. Severity says so and not the code: 08P01 for a wrong number of
/// parameters is an error like any other, and a conflict on a standby may be the end.
pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error
        .try_downcast_ref::<PgDatabaseError>()
        .is_some_and(|error| matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic))
}

/// Whether the error points at a place in the statement's text: it was found there before anything was run, so no bound value
/// has part in it.
fn names_the_text(error: &dyn DatabaseError) -> bool {
    let position = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::position);
    matches!(position, Some(PgErrorPosition::Original(_)))
}

/// Whether a statement failed before it was run because what was prepared for it is no longer valid: a table has changed
/// its columns (0A000, as raised by `RevalidateCachedQuery`), or the server has forgotten the statement (26000, as raised by
/// `FetchPreparedStatement`). The routine is asked for, since 0A000 says many things, a function may raise either when half
/// of its work is done, and the text depends on the server's language.
pub(crate) fn is_stale_plan(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    let routine = error.try_downcast_ref::<PgDatabaseError>().and_then(PgDatabaseError::routine);
    match error.code().as_deref() {
        Some("0A000") => routine == Some("RevalidateCachedQuery"),
        Some("26000") => routine == Some("FetchPreparedStatement"),
        _ => false,
    }
}

/// Whether a statement failed before it was run because a type of its values is not there any more: it was dropped and made
/// again under its name, and the driver goes on sending the number of the old one. The text is one of those that PostgreSQL
/// does not translate (`elog`).
pub(crate) fn is_stale_type(error: &sqlx::Error) -> bool {
    let sqlx::Error::Database(error) = error else { return false };
    error.code().as_deref() == Some("XX000") && error.message().starts_with("cache lookup failed for type ")
}

/// Whether a server that refuses a session with that code will do so next time, too. What goes wrong inside the server may mend
/// itself, and so may what took too long.
pub(crate) fn is_refusal(code: &str) -> bool {
    let verdict = Verdict::of_sqlstate(code);
    let is_inside = ["XX", "58", "F0"].iter().any(|class| code.starts_with(class));
    verdict.repeat == Repeat::Never && verdict.class != Class::TimedOut && !is_inside
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of PostgreSQL 14 to 18 (`errcodes.txt`), each with the answers that it is to have.
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
    fn every_code_of_the_server_has_the_three_answers_of_its_row() {
        let mut count = 0;
        for (verdict, codes) in ROWS {
            for code in codes.split_whitespace() {
                assert_eq!(Verdict::of_sqlstate(code), *verdict, "{code}");
                count += 1;
            }
        }
        assert_eq!(count, 264, "each code once");
    }

    #[test]
    fn every_row_is_met_by_a_code_and_stands_for_something() {
        for (at, (code, verdict)) in CODES.iter().enumerate() {
            assert!(CODES[..at].iter().all(|(other, _)| other != code), "{code} twice");
            let met = |known: &str| known.starts_with(code) && Verdict::of_sqlstate(known) == *verdict;
            assert!(ROWS.iter().any(|(_, codes)| codes.split_whitespace().any(met)), "{code} is no code's");
        }
    }

    #[test]
    fn a_code_that_is_not_known_has_the_row_of_its_class() {
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
    fn what_the_driver_says_before_it_sends_anything_costs_no_session() {
        let protocol = |said: &str| sqlx::Error::Protocol(said.to_owned());
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
            // From here on something was sent.
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
            // From here on no statement was concerned.
            (sqlx::Error::Configuration("no".into()), row(Class::Refused, Repeat::Never, Link::Kept)),
            (sqlx::Error::Tls("no".into()), row(Class::Refused, Repeat::Never, Link::Lost)),
            (sqlx::Error::PoolTimedOut, row(Class::NotReached, Repeat::Later, Link::Kept)),
            (sqlx::Error::PoolClosed, row(Class::NotReached, Repeat::Never, Link::Kept)),
        ] {
            assert_eq!(Verdict::of(&error), verdict, "{error:?}");
        }
    }

    #[test]
    fn a_session_is_refused_for_good_or_for_now() {
        let for_good =
            ["42501", "55000", "42704", "22023", "28000", "28P01", "3D000", "55P02", "57P04", "P0001"];
        let for_now =
            ["53300", "57P03", "57P01", "53200", "53100", "57014", "40001", "XX000", "58P01", "F0000"];
        for code in for_good {
            assert!(is_refusal(code), "{code}");
        }
        for code in for_now {
            assert!(!is_refusal(code), "{code}");
        }
    }

    #[test]
    fn the_link_of_a_statement_is_lost_whatever_the_network_says_of_it() {
        let refused = sqlx::Error::Io(std::io::Error::from(ErrorKind::ConnectionRefused));

        assert_eq!(Verdict::of(&refused), row(Class::NotReached, Repeat::Later, Link::Lost));
        assert_eq!(Verdict::of_statement(&refused), LOST);
    }

    #[test]
    fn a_missing_socket_is_a_server_that_is_not_there_yet_and_a_forbidden_one_is_not() {
        let missing = sqlx::Error::Io(std::io::Error::from(ErrorKind::NotFound));
        let forbidden = sqlx::Error::Io(std::io::Error::from_raw_os_error(13));

        assert_eq!(Class::of(&missing), Class::NotReached);
        assert_eq!(Class::of(&forbidden), Class::Refused);
    }

    #[test]
    fn a_reset_link_is_lost_and_a_name_not_known_is_not_reached() {
        let reset = sqlx::Error::Io(std::io::Error::from_raw_os_error(104));
        let unknown = sqlx::Error::Io(std::io::Error::other("failed to lookup address information"));
        let cut = sqlx::Error::Io(std::io::Error::from(ErrorKind::UnexpectedEof));

        assert_eq!(Class::of(&reset), Class::Lost);
        assert_eq!(Class::of(&unknown), Class::NotReached);
        assert_eq!(Class::of(&cut), Class::Lost);
    }
}
