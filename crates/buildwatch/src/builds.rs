//! Builds as rows.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use db_layer::encryption::{Context, EncryptionError, Sealed};
use db_layer::{Db, Error, LogId, Tx};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::output::End;

/// What is to be done, sealed in the database: a command line often has secrets in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) command: Vec<String>,
    pub(crate) folder: String,
    /// Names only. The values are nobody's business.
    pub(crate) environment: Vec<String>,
}

impl Plan {
    /// The plan of running a command here and now.
    pub(crate) fn of(command: &[OsString], folder: &Path) -> Self {
        let text = |os: &OsString| os.to_string_lossy().into_owned();
        let mut environment: Vec<String> = std::env::vars_os().map(|(name, _)| text(&name)).collect();
        environment.sort_unstable();
        Self {
            command: command.iter().map(text).collect(),
            folder: folder.to_string_lossy().into_owned(),
            environment,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Running,
    Succeeded,
    Failed,
    Aborted,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Aborted => "aborted",
        }
    }

    /// The column has a check constraint with these four.
    fn from_column(text: &str) -> Self {
        match text {
            "succeeded" => Self::Succeeded,
            "failed" => Self::Failed,
            "aborted" => Self::Aborted,
            _ => Self::Running,
        }
    }
}

/// A build, as it is shown.
#[derive(Debug, Serialize)]
pub(crate) struct Build {
    pub(crate) id: i64,
    #[serde(skip)]
    pub(crate) log: LogId,
    pub(crate) status: Status,
    pub(crate) exit_code: Option<i32>,
    /// `null` when the plan was sealed under a key that is not here.
    pub(crate) command: Option<Vec<String>>,
    pub(crate) folder: Option<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(crate) ended_at: Option<OffsetDateTime>,
}

struct Row {
    id: i64,
    log: i64,
    plan: Sealed<Plan>,
    status: String,
    exit_code: Option<i32>,
    created_at: OffsetDateTime,
    ended_at: Option<OffsetDateTime>,
}

/// What was said already of plans that cannot be unsealed: each key that is not here is named once, and each row with another
/// fault, however often they are read.
#[derive(Debug, Default)]
pub(crate) struct UnsealLog {
    said: Mutex<BTreeSet<String>>,
}

impl UnsealLog {
    /// After so many, nothing new is remembered or said.
    const MOST: usize = 1_000;

    fn warn(&self, error: &EncryptionError) {
        let what = match error {
            EncryptionError::UnknownKey { key_id, .. } => key_id.clone(),
            other => other.to_string(),
        };
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= Self::MOST || !said.insert(what) {
            return;
        }
        match error {
            EncryptionError::UnknownKey { key_id, .. } => {
                tracing::warn!(key_id, "plans that are sealed under another key cannot be shown");
            }
            other => tracing::warn!(error = %other, "a plan cannot be shown"),
        }
    }
}

impl Row {
    fn unseal(self, db: &Db, log: &UnsealLog) -> Build {
        let plan = db.keyring().and_then(|keyring| {
            keyring.unseal_json(&self.plan, &plan_place(self.id)).inspect_err(|error| log.warn(error)).ok()
        });
        let (command, folder) = plan.map(|plan| (plan.command, plan.folder)).unzip();
        Build {
            id: self.id,
            log: LogId(self.log),
            status: Status::from_column(&self.status),
            exit_code: self.exit_code,
            command,
            folder,
            created_at: self.created_at,
            ended_at: self.ended_at,
        }
    }
}

fn plan_place(id: i64) -> Context {
    Context::new("builds", "plan", id)
}

/// Writes down a build that begins now, with an empty log.
pub(crate) async fn create(db: &Db, plan: &Plan) -> anyhow::Result<(i64, LogId)> {
    let keyring = db.keyring().expect("buildwatch opens its database with a keyring");
    db.backend()
        .tx(async |tx| {
            // The plan is sealed for the row, so the row's number must be known first.
            let id =
                sqlx::query_scalar!(r#"select nextval(pg_get_serial_sequence('builds', 'id')) as "id!""#)
                    .fetch_one(&mut *tx)
                    .await
                    .map_err(Error::from)?;
            let log = db.events().create_in(tx).await?;
            let sealed = keyring.seal_json(plan, &plan_place(id))?;
            sqlx::query!(
                "insert into builds (id, log, plan) values ($1, $2, $3)",
                id,
                log.0,
                sealed.as_bytes()
            )
            .execute(&mut *tx)
            .await
            .map_err(Error::from)?;
            Ok((id, log))
        })
        .await
}

/// The newest builds, the newest first.
pub(crate) async fn newest(db: &Db, log: &UnsealLog, limit: i64) -> Result<Vec<Build>, Error> {
    let rows = sqlx::query_as!(
        Row,
        r#"select id, log, plan as "plan: Sealed<Plan>", status, exit_code, created_at, ended_at
        from builds
        order by id desc
        limit $1"#,
        limit
    )
    .fetch_all(db.api())
    .await?;
    Ok(rows.into_iter().map(|row| row.unseal(db, log)).collect())
}

/// One build, if there is one of this number.
pub(crate) async fn find(db: &Db, log: &UnsealLog, id: i64) -> Result<Option<Build>, Error> {
    let row = sqlx::query_as!(
        Row,
        r#"select id, log, plan as "plan: Sealed<Plan>", status, exit_code, created_at, ended_at
        from builds
        where id = $1"#,
        id
    )
    .fetch_optional(db.api())
    .await?;
    Ok(row.map(|row| row.unseal(db, log)))
}

/// The log of a build, if there is one of this number.
pub(crate) async fn log_of(db: &Db, id: i64) -> Result<Option<LogId>, Error> {
    let log =
        sqlx::query_scalar!("select log from builds where id = $1", id).fetch_optional(db.api()).await?;
    Ok(log.map(LogId))
}

/// Writes down how a build ended, in the transaction that finishes its log.
pub(crate) async fn end(tx: &mut Tx, id: i64, end: &End) -> Result<(), Error> {
    sqlx::query!(
        "update builds set status = $2, exit_code = $3, ended_at = now() where id = $1 and status = 'running'",
        id,
        end.status.as_str(),
        end.exit_code
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Says that the process which runs a build is there.
pub(crate) async fn seen(db: &Db, id: i64) -> Result<(), Error> {
    sqlx::query!("update builds set seen_at = now() where id = $1 and status = 'running'", id)
        .execute(db.backend())
        .await?;
    Ok(())
}

/// Builds that are running, with their logs and when their processes were last seen.
pub(crate) async fn running(db: &Db) -> Result<Vec<(i64, LogId, OffsetDateTime)>, Error> {
    let rows = sqlx::query!("select id, log, seen_at from builds where status = 'running' order by id")
        .fetch_all(db.backend())
        .await?;
    Ok(rows.into_iter().map(|row| (row.id, LogId(row.log), row.seen_at)).collect())
}
