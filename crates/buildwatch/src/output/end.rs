//! The last event of a build.

use db_layer::NewEvent;
use serde::{Deserialize, Serialize};

use super::END;
use crate::status::Status;

/// How a build ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) status: Status,
    /// The command's exit code; `null` if the command was not run to its end.
    pub(crate) exit_code: Option<i32>,
    /// An explanation for users, where the exit code is not enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message: Option<String>,
}

impl End {
    pub(crate) fn exited(code: i32) -> Self {
        let status = if code == 0 { Status::Succeeded } else { Status::Failed };
        Self { status, exit_code: Some(code), message: None }
    }

    pub(crate) fn failed(code: i32, message: String) -> Self {
        Self { status: Status::Failed, exit_code: Some(code), message: Some(message) }
    }

    pub(crate) fn aborted(message: &str) -> Self {
        Self { status: Status::Aborted, exit_code: None, message: Some(message.to_owned()) }
    }

    pub(crate) fn to_event(&self) -> NewEvent {
        NewEvent::new(END, serde_json::to_string(self).expect("a plain structure becomes JSON"))
    }
}
