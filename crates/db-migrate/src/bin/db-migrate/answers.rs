//! What the command prints as JSON. The schema is `schema/db-migrate.schema.json`.

use db_migrate::{Action, Attempt, Error, Planned, Repeatable, Status};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) current_version: i64,
    pub(crate) supported_version: i64,
    pub(crate) steps: Vec<Step>,
    pub(crate) problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Step {
    #[serde(flatten)]
    pub(crate) planned: Planned,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sql: Option<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Problem {
    pub(crate) version: Option<i64>,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn of(error: &Error) -> Self {
        Self { version: error.version(), message: error.to_string() }
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Statuses {
    pub(crate) current_version: i64,
    pub(crate) supported_version: i64,
    pub(crate) migrations: Vec<Status>,
    pub(crate) repeatables: Vec<Repeatable>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Problem>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Changes {
    pub(crate) changed: Vec<Change>,
    pub(crate) repeated: Vec<String>,
    pub(crate) version: i64,
}

#[derive(Debug, Serialize)]
pub(crate) struct Change {
    pub(crate) version: i64,
    pub(crate) action: Action,
}

#[derive(Debug, Serialize)]
pub(crate) struct Recorded {
    pub(crate) recorded: Vec<i64>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Files {
    pub(crate) files: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Attempts {
    pub(crate) attempts: Vec<Attempt>,
}
