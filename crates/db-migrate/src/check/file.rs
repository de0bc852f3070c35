//! One file: its trace, its way up, and its way back.

use std::fmt::Write;

use db_core::sql::{Position, split};
use serde::Serialize;
use sqlx::migrate::Migration;

use super::allow::Allowed;
use super::catalog::Catalog;
use super::error::CheckError;
use super::rule::{Finding, Rule};
use super::run::{Check, up};
use super::schema::{Rights, Schema};
use super::throwaway::{COPY, LINE, Throwaway};
use super::trace::{self, Trace, Traced};
use crate::data_step::step_name;
use crate::look::problems_of_files;
use crate::outside::is_refused_in_transaction;
use crate::run::close;
use crate::{Action, Error, Migrations};

/// The differences that a finding shows.
const SHOWN: usize = 10;

/// What a check has seen of one version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CheckedFile {
    /// Its version.
    pub version: i64,
    /// The name in its file's name, with spaces for underscores.
    pub description: String,
    /// The step that it is, if the program does not have it: it was taken for applied.
    pub step_not_run: Option<String>,
    /// The statements of its up file. Of a step, none.
    pub statements: Vec<Traced>,
    /// What became of going down and up again.
    pub way_back: WayBack,
    /// What was found, without what comments allow.
    pub findings: Vec<Finding>,
}

/// What became of a file's way back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum WayBack {
    /// There is no down file.
    Missing,
    /// The schema is the same again.
    Same,
    /// It is not, or the way back failed.
    Broken,
    /// It was not tried: the file could not be applied, or the way back drops a role, which belongs to all databases of the server, and which
    /// another one of the check needs.
    NotTried,
}

/// One file.
pub(super) struct Checking<'c> {
    pub(super) check: &'c Check<'c>,
    pub(super) throwaway: &'c mut Throwaway,
    pub(super) migrations: &'c Migrations,
    pub(super) file: &'c Migration,
    /// The version before.
    pub(super) target: i64,
    pub(super) findings: Vec<Finding>,
}

impl Checking<'_> {
    /// Traces the file and applies it. Returns whether it is applied.
    pub(super) async fn up(&mut self, counts: Option<&Catalog>) -> Result<(Vec<Traced>, bool), CheckError> {
        if self.is_refused(self.file, Rule::UpFails, Action::Up) {
            return Ok((Vec::new(), false));
        }
        let mut traced = self.trace(counts).await?;
        let allowed = Allowed::of(self.file.sql.as_str());
        self.hazards(&mut traced, &allowed, Action::Up);
        let applied = up(self.migrations, &self.throwaway.config(LINE), self.file.version).await;
        let is_applied = applied.is_ok();
        match (applied, traced.failed) {
            (Ok(()), None) => {}
            (Ok(()), Some(_)) if allowed.in_file(Rule::NotTraced) => {}
            (Ok(()), Some(error)) => {
                let position = statement_at(self.file.sql.as_str(), traced.statements.len());
                let message =
                    format!("the file is applied as a whole, and not statement by statement: {error}");
                self.found(Rule::NotTraced, Action::Up, position, message);
            }
            (Err(Error::Failed { at, cause, .. }), _) => {
                // Others of this code are about the order of statements.
                let is_concurrent = is_refused_in_transaction(&cause)
                    && cause.to_string().contains("inside a transaction block");
                let rule = if is_concurrent { Rule::ConcurrentInTransaction } else { Rule::UpFails };
                let nth = traced.statements.len();
                let position = at.or_else(|| statement_at(self.file.sql.as_str(), nth));
                self.found(rule, Action::Up, position, cause.to_string());
            }
            (Err(error), _) => self.found(Rule::UpFails, Action::Up, None, error.to_string()),
        }
        Ok((traced.statements, is_applied))
    }

    /// What the rules find in a trace, and what is wrong with the comments that allow something.
    pub(super) fn hazards(&mut self, traced: &mut Trace, allowed: &Allowed, action: Action) {
        for hazard in std::mem::take(&mut traced.hazards) {
            if !allowed.in_statement(hazard.rule, hazard.statement) {
                let position = traced.statements.get(hazard.statement).map(|it| it.position);
                self.found(hazard.rule, action, position, hazard.message);
            }
        }
        for (position, reason) in &allowed.bad {
            self.found(Rule::BadAllow, action, Some(*position), reason.clone());
        }
    }

    /// In a copy: sequences go on although a transaction is rolled back, and a file may commit.
    pub(super) async fn trace(&mut self, counts: Option<&Catalog>) -> Result<Trace, CheckError> {
        if step_name(self.file).is_some() {
            return Ok(Trace::default());
        }
        let shared = self.throwaway.shared().await?;
        self.throwaway.make(COPY, LINE).await?;
        let mut session = self.throwaway.session(COPY).await?;
        let own = self.check.own(&mut session).await?;
        let role = self.migrations.role.as_deref();
        let traced = trace::run(&mut session, self.file, role, counts, &own).await;
        close(session).await;
        self.throwaway.remove(COPY).await?;
        self.throwaway.remove_new(&shared).await?;
        traced.map_err(|cause| CheckError::Database { what: "trace a file", cause })
    }

    /// Goes down and up again, in a copy: what is in the database does not come back by itself.
    pub(super) async fn back(
        &mut self,
        down: &Migration,
        before: &Schema,
        after: &Schema,
    ) -> Result<WayBack, CheckError> {
        if self.is_refused(down, Rule::DownFails, Action::Down) {
            return Ok(WayBack::Broken);
        }
        self.throwaway.make(COPY, LINE).await?;
        let allowed = Allowed::of(down.sql.as_str());
        for (position, reason) in &allowed.bad {
            self.found(Rule::BadAllow, Action::Down, Some(*position), reason.clone());
        }
        let bad = self.findings.len();
        let is_tried = self.there_and_back(&allowed, before, after).await?;
        self.throwaway.remove(COPY).await?;
        Ok(match (is_tried, self.findings.len() > bad) {
            (false, _) => WayBack::NotTried,
            (true, true) => WayBack::Broken,
            (true, false) => WayBack::Same,
        })
    }

    /// Returns whether it could be tried.
    async fn there_and_back(
        &mut self,
        allowed: &Allowed,
        before: &Schema,
        after: &Schema,
    ) -> Result<bool, CheckError> {
        let config = self.throwaway.config(COPY);
        if let Err(error) = self.migrations.down_to(&config, self.target).await {
            if is_shared(&error) {
                return Ok(false);
            }
            if !allowed.in_file(Rule::DownFails) {
                let (position, message) = match error {
                    Error::Failed { at, cause, .. } => (at, cause.to_string()),
                    error => (None, error.to_string()),
                };
                self.found(Rule::DownFails, Action::Down, position, message);
            }
            return Ok(true);
        }
        self.compare(before, Rule::DownDiffers, allowed).await?;
        if let Err(error) = up(self.migrations, &config, self.file.version).await {
            if !allowed.in_file(Rule::UpAgainFails) {
                self.found(Rule::UpAgainFails, Action::Down, None, error.to_string());
            }
            return Ok(true);
        }
        // What the way back has left is told already.
        if self.findings.iter().all(|it| it.rule != Rule::DownDiffers) {
            self.compare(after, Rule::UpAgainDiffers, allowed).await?;
        }
        Ok(true)
    }

    async fn compare(&mut self, expected: &Schema, rule: Rule, allowed: &Allowed) -> Result<(), CheckError> {
        let now = self.schema(COPY).await?;
        let differences = expected.differences(&now);
        if !differences.is_empty() && !allowed.in_file(rule) {
            let mut message = "the schema is not what it was:".to_owned();
            for difference in differences.iter().take(SHOWN) {
                // Writing to a string does not fail.
                let _ = write!(message, "\n    {difference}");
            }
            if let more @ 1.. = differences.len().saturating_sub(SHOWN) {
                let _ = write!(message, "\n    and {more} more differences");
            }
            self.found(rule, Action::Down, None, message);
        }
        Ok(())
    }

    pub(super) async fn schema(&self, database: &str) -> Result<Schema, CheckError> {
        let mut session = self.throwaway.session(database).await?;
        let schema = self.check.schema(&mut session, Rights::Count).await?;
        close(session).await;
        Ok(schema)
    }

    /// Whether no run would begin a file as it is, which is then found.
    pub(super) fn is_refused(&mut self, file: &Migration, rule: Rule, action: Action) -> bool {
        let problems = problems_of_files([file].into_iter(), &[]);
        let is_refused = !problems.is_empty();
        for problem in problems {
            match problem {
                Error::Refused { findings } => {
                    for finding in findings {
                        self.found(rule, action, Some(finding.position), finding.reason);
                    }
                }
                problem => self.found(rule, action, None, problem.to_string()),
            }
        }
        is_refused
    }

    pub(super) fn found(&mut self, rule: Rule, action: Action, position: Option<Position>, message: String) {
        if self.check.without.contains(&rule) {
            return;
        }
        self.findings.push(Finding { rule, action, position, message, advice: rule.advice() });
    }
}

/// Whether a role could not be dropped. 2BP01 is `dependent_objects_still_exist`.
fn is_shared(error: &Error) -> bool {
    let Error::Failed { cause, .. } = error else { return false };
    cause.sqlstate().as_deref() == Some("2BP01") && cause.to_string().contains("role \"")
}

pub(super) fn statement_at(sql: &str, nth: usize) -> Option<Position> {
    Some(Position::of(sql, split(sql).ok()?.get(nth)?.start))
}
