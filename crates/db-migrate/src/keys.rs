//! The command line of the encryption keys on record.

use std::fmt::Write;

use clap::{Args, Subcommand};
use db_core::encryption::{
    Columns, KeyHolder, KeyId, KeyRecord, KeyRecordError, KeyStatus, Keyring, Promotion, RootKey,
};
use serde_json::json;

/// The arguments of a program's subcommand for encryption keys, such as `buildwatch keys`.
#[derive(Clone, Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    action: Action,
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Clone, Debug, Subcommand)]
enum Action {
    /// Show the keys on record, and the processes that have them.
    Status,
    /// Put the given keys on record, or with `--encryption-key-use wrap` a new data key. A key that is not the first one is known, and
    /// processes that have it make it primary.
    Add,
    /// Make a key the one that seals, if every living process has it.
    Promote {
        /// The key's id.
        id: KeyId,
        /// Do so also while processes do not have it, which then cannot read what others seal.
        #[arg(long)]
        force: bool,
    },
    /// Withdraw a known key, so that no process makes it primary.
    Retire {
        /// The key's id.
        id: KeyId,
    },
    /// Count that no value is sealed under a retired key, and make the columns refuse such values.
    Destroy {
        /// The key's id.
        id: KeyId,
    },
    /// Wrap the data keys under the given key, without touching a value.
    Rewrap {
        /// Do so also while processes do not have that key.
        #[arg(long)]
        force: bool,
    },
}

/// An action on the keys on record was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeysError {
    /// The record refused it.
    #[error(transparent)]
    Record(#[from] KeyRecordError),
    /// Processes do not have the key.
    #[error("nothing was changed: these processes do not have the key: {}", .0.join("; "))]
    WaitsFor(Vec<String>),
    /// The action needs the given key.
    #[error("no encryption key is given: set --encryption-key-base64, or another of its forms")]
    NoKey,
}

impl KeysArgs {
    /// Does what the arguments say, and returns what to print.
    ///
    /// `given` are the keys of the program's settings. `wraps` says that they are root keys. `columns` are those that the program
    /// declares: a key is destroyed when none of them needs it.
    ///
    /// Dropping the future leaves each transaction done or undone as a whole.
    ///
    /// # Errors
    ///
    /// [`KeysError`].
    pub async fn run(
        &self,
        record: &KeyRecord,
        given: Option<&Keyring>,
        wraps: bool,
        columns: &Columns,
    ) -> Result<String, KeysError> {
        let this = KeyHolder::this_process(std::time::Duration::ZERO).map_err(KeyRecordError::from)?;
        let by = this.name();
        let given = || given.ok_or(KeysError::NoKey);
        let done = |id: KeyId, what: &str| self.say(&[(id, what.to_owned())]);
        match self.action {
            Action::Status => {
                let status = record.status().await?;
                Ok(if self.json { json!(status).to_string() + "\n" } else { table(&status) })
            }
            Action::Add if wraps => {
                let root: &dyn RootKey = given()?;
                let (id, state) = record.add_data_key(root, by).await?;
                Ok(done(id, state.name()))
            }
            Action::Add => {
                let added = record.add(given()?, by).await?;
                let lines: Vec<_> = added.iter().map(|(id, state)| (*id, state.to_string())).collect();
                Ok(self.say(&lines))
            }
            Action::Promote { id, force } => {
                changed(record.promote(id, force, by).await?)?;
                Ok(done(id, "primary"))
            }
            Action::Retire { id } => {
                record.retire(id, by).await?;
                Ok(done(id, "retired"))
            }
            Action::Destroy { id } => {
                record.destroy(id, columns, by).await?;
                Ok(done(id, "destroyed"))
            }
            Action::Rewrap { force } => {
                let root = given()?;
                changed(record.rewrap(root, force).await?)?;
                let lines: Vec<_> =
                    RootKey::id(root).map(|id| (id, "wraps the data keys".to_owned())).into_iter().collect();
                Ok(self.say(&lines))
            }
        }
    }

    fn say(&self, lines: &[(KeyId, String)]) -> String {
        let line = |(id, what): &(KeyId, String)| {
            if self.json { json!({ "id": id, "state": what }).to_string() } else { format!("{id}  {what}") }
        };
        lines.iter().map(|each| line(each) + "\n").collect()
    }
}

fn changed(promotion: Promotion) -> Result<(), KeysError> {
    match promotion {
        Promotion::WaitsFor(names) => Err(KeysError::WaitsFor(names)),
        _ => Ok(()),
    }
}

/// The record for a terminal.
fn table(status: &KeyStatus) -> String {
    let mut text = String::new();
    for row in &status.keys {
        let wrapped = if row.key.is_wrapped { ", wrapped" } else { "" };
        writeln!(
            text,
            "{}  {:<9}  since {} by {}{wrapped}",
            row.key.id,
            row.key.state.name(),
            row.since,
            row.changed_by
        )
        .expect("writing to a string");
        if row.key.state.name() == "known" && !row.waits_for.is_empty() {
            writeln!(text, "          waits for {}", row.waits_for.join("; ")).expect("writing to a string");
        }
    }
    for holder in &status.holders {
        let keys: Vec<_> = holder.keys.iter().map(ToString::to_string).collect();
        let lease = if holder.lease_s > 0.0 {
            format!("lease ends in {:.0} s", holder.lease_s)
        } else {
            format!("lease ended {:.0} s ago", -holder.lease_s)
        };
        let seals = holder.seals_under.map(|id| format!(", seals under {id}")).unwrap_or_default();
        writeln!(text, "{}: has {}{seals}, {lease}", holder.name, keys.join(" "))
            .expect("writing to a string");
    }
    if text.is_empty() {
        text.push_str("no key is on record\n");
    }
    text
}
