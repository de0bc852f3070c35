//! Conversions between the errors of `SeaORM` and those of this crate.

use std::fmt;
use std::sync::Arc;

use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr, TransactionError};

use crate::call_site::CallSite;
use crate::{Class, Classify, Error, Repeat};

/// `SeaORM` failed without an error of the driver, or the end of an outer transaction of `SeaORM` had ended this one.
///
/// `Display` and `Debug` leave out `SeaORM`'s messages about values that it could not convert: these quote the values.
#[derive(Clone)]
pub struct OrmError(Kind);

#[derive(Clone)]
enum Kind {
    /// An error of `SeaORM`.
    Said(DbErr),
    /// Nothing was sent.
    Ended { pool: Arc<str>, at: CallSite },
}

impl OrmError {
    pub(super) fn ended(pool: &Arc<str>, at: CallSite) -> Self {
        Self(Kind::Ended { pool: Arc::clone(pool), at })
    }

    /// The kind of error, for decisions.
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

    /// Whether the work may be repeated.
    #[must_use]
    pub fn repeat(&self) -> Repeat {
        match &self.0 {
            Kind::Said(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)) => Repeat::Later,
            Kind::Said(_) | Kind::Ended { .. } => Repeat::Never,
        }
    }

    /// Whether an expected row was not found, or not changed.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.0, Kind::Said(DbErr::RecordNotFound(_) | DbErr::RecordNotUpdated))
    }

    /// Whether the end of an outer transaction had ended this one. Nothing was sent.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        matches!(self.0, Kind::Ended { .. })
    }

    /// The error of `SeaORM`, if there is one. Its text may quote values.
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
            Kind::Said(DbErr::Json(_)) => f.write_str("SeaORM: a value is not JSON of the expected kind"),
            Kind::Said(said) => write!(f, "SeaORM: {said}"),
            Kind::Ended { pool, at } => write!(
                f,
                "pool `{pool}`: nothing was sent: the end of an outer transaction had already ended this transaction of SeaORM \
                 (`orm` called at {at})"
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

/// The error of a statement that returns rows.
pub(super) fn querying(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

/// The error of a statement that returns none.
pub(super) fn executing(error: sqlx::Error) -> DbErr {
    DbErr::Exec(RuntimeErr::SqlxError(Arc::new(error)))
}

impl From<DbErr> for Error {
    /// Recovers an error of this crate that was passed through `SeaORM`, or the driver's error; wraps any other.
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
    /// `SeaORM`'s traits can only fail with its own error. The conversion back to [`Error`] recovers this one.
    fn from(error: Error) -> Self {
        match error {
            Error::Statement(error) => Self::Query(RuntimeErr::SqlxError(error.0)),
            Error::Orm(OrmError(Kind::Said(said))) => said,
            Error::Acquire(error) => Self::Conn(RuntimeErr::SqlxError(Arc::new(error.into()))),
            Error::Deadline(error) => querying(error.into()),
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
