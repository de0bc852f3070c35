//! `SeaORM`'s transaction options as those of this crate.

use std::fmt::Write as _;

use sea_orm::{AccessMode, IsolationLevel, TransactionOptions};

use crate::{Isolation, TxOptions};

pub(super) fn of_transaction(options: TransactionOptions) -> TxOptions {
    let ours = match options.isolation_level {
        None => TxOptions::default(),
        // The server has no lower level.
        Some(IsolationLevel::ReadUncommitted | IsolationLevel::ReadCommitted) => {
            TxOptions::default().isolation(Isolation::ReadCommitted)
        }
        Some(IsolationLevel::RepeatableRead) => TxOptions::default().isolation(Isolation::RepeatableRead),
        Some(IsolationLevel::Serializable) => TxOptions::default().isolation(Isolation::Serializable),
    };
    match options.access_mode {
        None => ours,
        Some(AccessMode::ReadOnly) => ours.read_only(),
        Some(AccessMode::ReadWrite) => ours.read_write(),
    }
}

/// The statement that sets the options in a savepoint. The server decides: a savepoint may become read-only, and keeps the isolation of its
/// transaction.
pub(super) fn of_savepoint(options: TransactionOptions) -> Option<String> {
    let mut sql = "SET TRANSACTION".to_owned();
    let empty = sql.len();
    if let Some(isolation) = options.isolation_level {
        write!(sql, " ISOLATION LEVEL {isolation}").expect("writing to a string");
    }
    if let Some(access) = options.access_mode {
        write!(sql, " {access}").expect("writing to a string");
    }
    (sql.len() > empty).then_some(sql)
}
