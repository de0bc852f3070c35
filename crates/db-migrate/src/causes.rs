//! The causes of an error that a program's step gave: what is known of the server's, and how they are shown.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;

use db_core::Class;

use crate::StepError;
use crate::batches::BatchError;

/// The driver's own error may quote values.
pub(crate) fn redacted(error: StepError) -> StepError {
    match error.downcast::<sqlx::Error>() {
        Ok(error) => db_core::Error::from(*error).into(),
        Err(other) => other,
    }
}

/// What is known of the server's or the driver's error in the causes of an error.
pub(crate) struct Known {
    pub(crate) class: Class,
    pub(crate) sqlstate: Option<String>,
}

impl Known {
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Option<Self> {
        let mut error = Some(error);
        while let Some(this) = error {
            let found = match this.downcast_ref::<BatchError>() {
                Some(BatchError::Failed { cause, .. }) => Some(&**cause),
                Some(BatchError::Connect(error)) => {
                    let class = if error.failure().is_final() { Class::Refused } else { Class::NotReached };
                    return Some(Self { class, sqlstate: None });
                }
                _ => this.downcast_ref::<db_core::Error>(),
            };
            if let Some(found) = found {
                // Its session was lost, and nothing of it is stored.
                let is_undone = matches!(found, db_core::Error::RolledBack(_));
                let class = if is_undone { Class::Lost } else { found.class() };
                return Some(Self { class, sqlstate: found.sqlstate().map(Cow::into_owned) });
            }
            if let Some(found) = this.downcast_ref::<sqlx::Error>() {
                let code = found.as_database_error().and_then(sqlx::error::DatabaseError::code);
                return Some(Self { class: Class::of(found), sqlstate: code.map(Cow::into_owned) });
            }
            error = this.source();
        }
        None
    }
}

/// An error and its causes, in a line. Those that an error repeats in its own text are left out, and so is what quotes a value.
pub(crate) struct Causes<'e>(pub(crate) &'e StepError);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = String::new();
        let mut next: Option<&(dyn StdError + 'static)> = Some(&**self.0);
        while let Some(error) = next {
            let text = match error.downcast_ref::<sqlx::Error>() {
                Some(sqlx::Error::Database(error)) => match error.code() {
                    // The message of a data error has the value.
                    Some(code) if code.starts_with("22") => format!("a value was refused ({code})"),
                    code => format!("{} ({})", error.message(), code.unwrap_or_default()),
                },
                _ => error.to_string(),
            };
            if !before.contains(&text) {
                let start = if before.is_empty() { "" } else { ": " };
                write!(f, "{start}{text}")?;
                before = text;
            }
            // The driver's own cause is the same once more, with a line of the server's source.
            next = error.source().filter(|_| !error.is::<sqlx::Error>());
        }
        Ok(())
    }
}
