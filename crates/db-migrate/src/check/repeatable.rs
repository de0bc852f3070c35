//! A repeatable file: it is applied, and has to run again.

use serde::Serialize;

use super::allow::Allowed;
use super::catalog::Catalog;
use super::error::CheckError;
use super::file::{Checking, statement_at};
use super::rule::{Finding, Rule};
use super::run::up;
use super::throwaway::LINE;
use super::trace::Traced;
use crate::{Action, Error};

/// What a check has seen of a repeatable file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckedRepeatable {
    /// Its name, without `.sql`.
    pub name: String,
    /// Its statements, as they ran the second time.
    pub statements: Vec<Traced>,
    /// What was found, without what comments allow.
    pub findings: Vec<Finding>,
}

impl Checking<'_> {
    /// Applies the file, and traces how it runs when what it makes is there. Returns whether it is applied.
    pub(super) async fn repeatable(
        mut self,
        counts: Option<&Catalog>,
    ) -> Result<(CheckedRepeatable, bool), CheckError> {
        let (file, action) = (self.file, Action::Repeat);
        let (statements, is_applied) = if self.is_refused(file, Rule::UpFails, action) {
            (Vec::new(), false)
        } else if let Err(error) = up(self.migrations, &self.throwaway.config(LINE), file.version).await {
            let (position, message) = match error {
                Error::Failed { at, cause, .. } => (at, cause.to_string()),
                error => (None, error.to_string()),
            };
            self.found(Rule::UpFails, action, position, message);
            (Vec::new(), false)
        } else {
            let mut traced = self.trace(counts).await?;
            let allowed = Allowed::of(file.sql.as_str());
            self.hazards(&mut traced, &allowed, action);
            if let Some(error) = traced.failed.filter(|_| !allowed.in_file(Rule::NotRepeatable)) {
                let position = statement_at(file.sql.as_str(), traced.statements.len());
                self.found(Rule::NotRepeatable, action, position, error.to_string());
            }
            (traced.statements, true)
        };
        let name = file.description.to_string();
        Ok((CheckedRepeatable { name, statements, findings: self.findings }, is_applied))
    }
}
