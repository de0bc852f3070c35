//! The rules of a script, and how often each was used.

use std::fmt::Write as _;

use super::reply::Reply;
use super::rule::{Bound, Rule};
use super::values::Column;

/// Only so much of the rules is shown with a statement that none of them answers.
const SHOWN: usize = 8000;

#[derive(Debug, Default)]
pub(super) struct Book {
    entries: Vec<Entry>,
    /// What was asked for in vain.
    unanswered: Vec<String>,
}

#[derive(Debug)]
struct Entry {
    rule: Rule,
    /// The list of rules that are used one after the other, if it belongs to one.
    list: Option<usize>,
    asked: u32,
    used: u32,
}

impl Entry {
    fn is_used_up(&self) -> bool {
        self.rule.times.is_some_and(|times| self.used >= times)
    }

    fn is_missing(&self) -> bool {
        !self.rule.optional && self.used < self.rule.times.unwrap_or(1)
    }
}

impl Book {
    pub(super) fn add(&mut self, rule: Rule, list: Option<usize>) {
        self.entries.push(Entry { rule, list, asked: 0, used: 0 });
    }

    /// Why the rules cannot be followed.
    pub(super) fn wrong(&self) -> Option<String> {
        for (at, entry) in self.entries.iter().enumerate() {
            let number = at + 1;
            if let Some(why) = entry.rule.wrong() {
                return Some(format!("rule {number}, {}: {why}", entry.rule));
            }
            if entry.list.is_some() && entry.rule.nth.is_some() {
                return Some(format!("rule {number}, {}: its place in the list says which time", entry.rule));
            }
            for (earlier, first) in self.entries[..at].iter().enumerate() {
                // Within a list, the place decides.
                if first.list.is_some() && first.list == entry.list {
                    continue;
                }
                if let Some(why) = first.rule.contradicted_by(&entry.rule) {
                    return Some(format!(
                        "rules {} and {number} contradict each other, {} and {}: {why}",
                        earlier + 1,
                        first.rule,
                        entry.rule
                    ));
                }
            }
        }
        None
    }

    /// Whether any rule is for the statement, whatever is bound to it.
    pub(super) fn knows(&self, text: &str) -> bool {
        self.entries.iter().any(|entry| entry.rule.is_for_text(text))
    }

    /// The columns of the statement's answer, by the first rule that has some and is not used up; and the types of its values.
    pub(super) fn describe(&self, text: &str) -> (Option<Vec<Column>>, Option<Vec<u32>>) {
        let rules = || self.entries.iter().filter(|entry| entry.rule.is_for_text(text));
        let columns = rules()
            .filter(|entry| !entry.is_used_up())
            .chain(rules())
            .find_map(|entry| entry.rule.reply.columns().map(<[Column]>::to_vec));
        (columns, rules().find_map(|entry| entry.rule.types()))
    }

    /// The reply to a statement, and the number of its rule.
    pub(super) fn reply(&mut self, text: &str, bound: &[Bound]) -> Option<(usize, Reply)> {
        let mut found = None;
        for at in 0..self.entries.len() {
            let entry = &self.entries[at];
            if !entry.rule.is_for_text(text) || entry.rule.differs_at(bound).is_some() {
                continue;
            }
            let is_due = self.entries[..at]
                .iter()
                .all(|earlier| entry.list.is_none() || earlier.list != entry.list || earlier.is_used_up());
            let entry = &mut self.entries[at];
            entry.asked += 1;
            let is_time = entry.rule.nth.is_none_or(|n| n == entry.asked);
            if found.is_none() && is_due && is_time && !entry.is_used_up() {
                entry.used += 1;
                found = Some((at + 1, entry.rule.reply.clone()));
            }
        }
        found
    }

    /// Notes a statement that no rule answers, and says so.
    pub(super) fn refuse(&mut self, text: &str, bound: Option<&[Bound]>) -> String {
        let mut said = format!("no rule of the script answers `{text}`");
        for (at, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.rule.is_for_text(text)) {
            let reason = match bound.and_then(|bound| entry.rule.differs_at(bound)) {
                Some(value) => format!("another value of ${value}"),
                None if entry.is_used_up() => format!("been used {} times", entry.used),
                None if entry.list.is_some() => {
                    "an earlier rule of its list that was not used yet".to_owned()
                }
                None => format!("been asked {} times", entry.asked),
            };
            // Writing to a string does not fail.
            let _ = write!(said, "\n  rule {} has {reason}", at + 1);
        }
        let _ = write!(said, "\nThe rules:{}", self.list());
        self.unanswered.push(said.clone());
        said
    }

    /// Notes an answer that cannot be given, and says so.
    pub(super) fn fail(&mut self, why: String) -> String {
        self.unanswered.push(why.clone());
        why
    }

    fn list(&self) -> String {
        let mut list = String::new();
        for (at, entry) in self.entries.iter().enumerate() {
            if list.len() > SHOWN {
                let _ = write!(list, "\n  and {} more", self.entries.len() - at);
                break;
            }
            let _ = write!(list, "\n  {}. {}; used {} times", at + 1, entry.rule, entry.used);
        }
        if list.is_empty() { " none".to_owned() } else { list }
    }

    /// What fails the test: statements without an answer, and rules without a statement.
    pub(super) fn failure(&self) -> Option<String> {
        let mut parts = self.unanswered.clone();
        for (at, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.is_missing()) {
            let Entry { rule, used, .. } = entry;
            parts.push(format!("rule {} was used {used} times: {rule}", at + 1));
        }
        (!parts.is_empty()).then(|| parts.join("\n"))
    }
}
