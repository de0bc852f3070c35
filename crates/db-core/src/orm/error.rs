//! Errors of `SeaORM` as ours, and ours as its.

use std::fmt;
use std::sync::Arc;

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, TransactionError};

use crate::call_site::CallSite;
use crate::{Class, Classify, Error, Repeat};

/// `SeaORM` failed without an error of the driver, or one of its transactions had been ended by another one around it.
///
/// `Display` and `Debug` leave out what `SeaORM` says of values that it could not convert, which quotes them.
#[derive(Clone)]
pub struct OrmError(Kind);

#[derive(Clone)]
enum Kind {
    /// What `SeaORM` said.
    Said(DbErr),
    /// Nothing was sent.
    Ended { pool: Arc<str>, at: CallSite },
}

impl OrmError {
    pub(super) fn ended(pool: &Arc<str>, at: CallSite) -> Self {
        Self(Kind::Ended { pool: Arc::clone(pool), at })
    }

    /// What the error means for a decision.
    #[must_use]
    pub fn class(&self) -> Class {
        match &self.0 {
            Kind::Said(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)) => Class::NotReached,
            Kind::Said(
                DbErr::ConvertFromU64(_)
                | DbErr::UpdateGetPrimaryKey
                | DbErr::AttrNotSet(_)
                | DbErr::BackendNotSupported { .. }
                | DbErr::KeyArityMismatch { .. }
                | DbErr::PrimaryKeyNotSet { .. },
            )
            | Kind::Ended { .. } => Class::Misuse,
            Kind::Said(_) => Class::Other,
        }
    }

    /// Whether what failed may be tried again.
    #[must_use]
    pub fn repeat(&self) -> Repeat {
        match &self.0 {
            Kind::Said(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)) => Repeat::Later,
            Kind::Said(_) | Kind::Ended { .. } => Repeat::Never,
        }
    }

    /// Whether a row was expected, and none was found or changed.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.0, Kind::Said(DbErr::RecordNotFound(_) | DbErr::RecordNotUpdated))
    }

    /// Whether the transaction that something was meant for had been ended by another one around it. Nothing was sent.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.0, Kind::Ended { .. })
    }

    /// What `SeaORM` said, if it did. It may quote values.
    #[must_use]
    pub fn as_sea_orm(&self) -> Option<&DbErr> {
        match &self.0 {
            Kind::Said(said) => Some(said),
            Kind::Ended { .. } => None,
        }
    }
}

impl fmt::Display for OrmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Said(DbErr::TryIntoErr { from, into, .. }) => {
                write!(f, "SeaORM: a value could not be converted from `{from}` into `{into}`")
            }
            Kind::Said(DbErr::Type(_)) => f.write_str("SeaORM: a value could not be converted"),
            Kind::Said(DbErr::Json(_)) => {
                f.write_str("SeaORM: a value is no JSON of the kind that is expected")
            }
            Kind::Said(said) => write!(f, "SeaORM: {said}"),
            Kind::Ended { pool, at } => write!(
                f,
                "pool `{pool}`: nothing was sent: the transaction of SeaORM that it was meant for had been ended by another one \
                 around it (`orm` called at {at})"
            ),
        }
    }
}

impl fmt::Debug for OrmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrmError")
            .field("class", &self.class())
            .field("said", &format_args!("{self}"))
            .finish()
    }
}

impl std::error::Error for OrmError {}

/// The error of a statement that was to return rows.
pub(super) fn querying(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

/// The error of one that was not.
pub(super) fn executing(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

impl From<DbErr> for Error {
    /// Takes back an error of ours that travelled through `SeaORM`, and finds the driver's; wraps any other.
    fn from(error: DbErr) -> Self {
        match error {
            DbErr::Conn(RuntimeErr::SqlxError(error))
            | DbErr::Exec(RuntimeErr::SqlxError(error))
            | DbErr::Query(RuntimeErr::SqlxError(error)) => Self::of_driver(error),
            other => Self::Orm(OrmError(Kind::Said(other))),
        }
    }
}

impl From<Error> for DbErr {
    /// `SeaORM`'s traits can only fail with its error; [`Error`] finds ours again inside.
    fn from(error: Error) -> Self {
        match error {
            Error::Statement(error) => Self::Query(RuntimeErr::SqlxError(error.0)),
            Error::Orm(OrmError(Kind::Said(said))) => said,
            Error::Acquire(error) => Self::Conn(RuntimeErr::SqlxError(Arc::new(error.into()))),
            Error::Deadline(error) => querying(error.into()),
            Error::Pooler(error) => querying(error.into()),
            Error::Lent(error) => querying(error.into()),
            other => querying(sqlx::Error::Configuration(Box::new(other))),
        }
    }
}

impl<E: std::error::Error> From<TransactionError<E>> for Error
where
    Self: From<E>,
{
    fn from(error: TransactionError<E>) -> Self {
        match error {
            TransactionError::Connection(error) => error.into(),
            TransactionError::Transaction(error) => error.into(),
        }
    }
}

impl Classify for DbErr {
    fn retry_class(&self) -> Option<Class> {
        Error::from(self.clone()).retry_class()
    }
}
