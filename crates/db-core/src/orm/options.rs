//! The options that `SeaORM` begins with, as ours.

use std::fmt::Write as _;

use sea_orm::{AccessMode, IsolationLevel, TransactionOptions};

use crate::{Isolation, TxOptions};

pub(super) fn of_transaction(options: TransactionOptions) -> TxOptions {
    let ours = match options.isolation_level {
        None => TxOptions::default(),
        // The server knows no lesser one.
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

/// The statement that asks for them in a savepoint, where the server decides: a savepoint may be made to read only, and has the isolation of
/// its transaction.
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
