//! Which statement a rule is for, and how often.

use std::fmt;

use super::reply::{Answer, Before, Reply};
use super::values::{Cell, Values, oid};
use super::words::squeezed;

/// A statement, and what is answered to it.
///
/// The first rule that is for a statement and is not used up answers it. A rule has to be used at least once, or as often as
/// it says, or the script fails its test.
///
/// ```
/// use db_testkit::script::{Reply, Rows, Rule, ServerError};
///
/// let rules = [
///     Rule::statement("select name from shop where id = $1").bound((7_i64,)).reply(Rows::new(["name"]).row(("first",))),
///     // The first time only.
///     Rule::containing("update shop").nth(1).reply(ServerError::new("40001", "could not serialize access")),
///     Rule::containing("update shop").reply(Reply::tag("UPDATE 1")),
/// ];
/// ```
#[derive(Clone, Debug)]
pub struct Rule {
    text: Text,
    bound: Option<Result<Vec<Bound>, String>>,
    /// The places in `bound` where any value is taken.
    free: Vec<usize>,
    pub(super) times: Option<u32>,
    pub(super) nth: Option<u32>,
    pub(super) optional: bool,
    pub(super) reply: Reply,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Text {
    Is(String),
    Begins(String),
    Contains(String),
}

/// A value that a statement was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Bound {
    pub(super) oid: u32,
    pub(super) value: Cell,
}

impl Rule {
    /// For the statement with this text. White space counts as one space, and a semicolon at the end does not count.
    #[must_use]
    pub fn statement(text: &str) -> Rule {
        Rule::of(Text::Is(squeezed(text)))
    }

    /// For each statement that begins with this text, in the same sense.
    #[must_use]
    pub fn beginning(text: &str) -> Rule {
        Rule::of(Text::Begins(squeezed(text)))
    }

    /// For each statement that contains this text, in the same sense.
    #[must_use]
    pub fn containing(text: &str) -> Rule {
        Rule::of(Text::Contains(squeezed(text)))
    }

    fn of(text: Text) -> Rule {
        Rule {
            text,
            bound: None,
            free: Vec::new(),
            times: None,
            nth: None,
            optional: false,
            reply: Reply::usual(),
        }
    }

    /// Only when these values are bound to the statement, all of them and in this order.
    #[must_use]
    pub fn bound<T: Values>(mut self, values: T) -> Rule {
        self.bound = Some(values.cells().and_then(|cells| {
            let types = T::types();
            types.iter().zip(cells).map(|(info, value)| Ok(Bound { oid: oid(info)?, value })).collect()
        }));
        self
    }

    /// Only when these values are bound to the statement; with any value where the second is true.
    pub(super) fn recorded(mut self, values: Vec<(Bound, bool)>) -> Rule {
        self.free = values.iter().enumerate().filter(|(_, (_, is_any))| *is_any).map(|(at, _)| at).collect();
        self.bound = Some(Ok(values.into_iter().map(|(bound, _)| bound).collect()));
        self
    }

    /// Only for the n-th statement that it is for, counted from 1 and over all sessions.
    #[must_use]
    pub fn nth(mut self, n: u32) -> Rule {
        self.nth = Some(n);
        self
    }

    /// Exactly this often, and no more (default at least once).
    #[must_use]
    pub fn times(mut self, times: u32) -> Rule {
        self.times = Some(times);
        self
    }

    /// Need not be used.
    #[must_use]
    pub fn optional(mut self) -> Rule {
        self.optional = true;
        self
    }

    /// What to answer (default [`Reply::usual`]).
    #[must_use]
    pub fn reply(mut self, reply: impl Into<Reply>) -> Rule {
        self.reply = reply.into();
        self
    }

    /// Whether it is for this statement, whatever is bound to it.
    pub(super) fn is_for_text(&self, text: &str) -> bool {
        match &self.text {
            Text::Is(whole) => whole == text,
            Text::Begins(beginning) => text.starts_with(beginning),
            Text::Contains(part) => text.contains(part),
        }
    }

    /// The first value that differs, counted from 1.
    pub(super) fn differs_at(&self, bound: &[Bound]) -> Option<usize> {
        let Some(Ok(own)) = &self.bound else { return None };
        (0..own.len().max(bound.len()))
            .find(|at| match (own.get(*at), bound.get(*at)) {
                (Some(_), Some(_)) if self.free.contains(at) => false,
                (own, other) => own.map(|it| &it.value) != other.map(|it| &it.value),
            })
            .map(|at| at + 1)
    }

    /// The types of the values that it asks for.
    pub(super) fn types(&self) -> Option<Vec<u32>> {
        let Some(Ok(own)) = &self.bound else { return None };
        Some(own.iter().map(|it| it.oid).collect())
    }

    /// Why it can never do what it says.
    pub(super) fn wrong(&self) -> Option<String> {
        let (Text::Is(text) | Text::Begins(text) | Text::Contains(text)) = &self.text;
        if text.is_empty() {
            return Some("its text is empty".to_owned());
        }
        if self.times == Some(0) || self.nth == Some(0) {
            return Some("it is for no time: times and n-th are counted from 1".to_owned());
        }
        if self.times.is_some() && self.nth.is_some() {
            return Some("the n-th time is one time: it cannot have `times` as well".to_owned());
        }
        if let Some(Err(why)) = &self.bound {
            return Some(why.clone());
        }
        let notices = self.reply.before.iter().find_map(|before| match before {
            Before::Notice(notice) => notice.wrong(),
            Before::Delay(_) | Before::Notification { .. } => None,
        });
        notices.or_else(|| match &self.reply.answer {
            Answer::Rows(table) => table.wrong.clone(),
            Answer::Error(error) => error.wrong(),
            Answer::Usual | Answer::Silence | Answer::Cut => None,
        })
    }

    /// Why a later rule contradicts this one.
    pub(super) fn contradicted_by(&self, later: &Rule) -> Option<&'static str> {
        let same = self.text == later.text;
        if same
            && let (Some(own), Some(other)) = (self.reply.columns(), later.reply.columns())
            && own != other
        {
            return Some("both answer the same statement, with different columns");
        }
        if !self.covers(later) {
            return None;
        }
        match (self.times, self.nth, later.nth) {
            (None, None, _) => Some("the first answers each time, so the second never does"),
            (None, Some(own), Some(other)) if own == other && same => Some("both are for the same time"),
            _ => None,
        }
    }

    /// Whether it is for each statement that the other is for.
    fn covers(&self, other: &Rule) -> bool {
        let (Text::Is(text) | Text::Begins(text) | Text::Contains(text)) = &other.text;
        let texts = self.text == other.text
            || match &self.text {
                Text::Is(_) => false,
                Text::Begins(beginning) => {
                    !matches!(other.text, Text::Contains(_)) && text.starts_with(beginning)
                }
                Text::Contains(part) => text.contains(part),
            };
        texts && (self.bound.is_none() || self.bound == other.bound && self.free == other.free)
    }
}

/// Without the values that it asks for: they may be secret.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.text {
            Text::Is(text) => write!(f, "the statement `{text}`")?,
            Text::Begins(text) => write!(f, "a statement that begins with `{text}`")?,
            Text::Contains(text) => write!(f, "a statement that contains `{text}`")?,
        }
        if let Some(Ok(bound)) = &self.bound {
            write!(f, " with {} values of its own", bound.len())?;
        }
        if let Some(n) = self.nth {
            write!(f, ", time {n}")?;
        }
        if let Some(times) = self.times {
            write!(f, ", {times} times")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::reply::Rows;
    use super::*;

    fn contradiction(first: &Rule, second: &Rule) -> Option<&'static str> {
        first.contradicted_by(second)
    }

    #[test]
    fn white_space_and_a_last_semicolon_do_not_count() {
        let rule = Rule::statement("select\n  1 ;");

        assert!(rule.is_for_text(&squeezed(" select 1;")));
        assert!(!rule.is_for_text(&squeezed("select 11")));
        assert!(Rule::beginning("select").is_for_text("select 11"));
        assert!(Rule::containing("11").is_for_text("select 11"));
    }

    #[test]
    fn bound_values_are_compared_by_value_and_number() {
        let rule = Rule::statement("s").bound((7_i64, "x"));
        let other = |rule: &Rule| rule.bound.clone().unwrap().unwrap();

        assert_eq!(rule.differs_at(&other(&rule)), None);
        assert_eq!(rule.differs_at(&other(&Rule::statement("s").bound((7_i64, "y")))), Some(2));
        assert_eq!(rule.differs_at(&other(&Rule::statement("s").bound((7_i64,)))), Some(2));
        assert_eq!(Rule::statement("s").differs_at(&other(&rule)), None);
        assert!(!rule.to_string().contains('7'), "{rule}");
    }

    #[test]
    fn a_rule_behind_one_that_always_answers_is_a_contradiction() {
        let (any, one) = (|| Rule::containing("shop"), Rule::statement("select 1 from shop"));

        assert!(contradiction(&any(), &one).is_some());
        assert!(contradiction(&any().times(1), &one).is_none());
        assert!(contradiction(&any().nth(2), &one).is_none());
        assert!(contradiction(&any().bound((1_i32,)), &one).is_none());
        assert!(contradiction(&one, &any()).is_none());
        assert!(contradiction(&any().nth(2), &any().nth(2)).is_some());
        assert!(contradiction(&any().nth(2), &any().nth(3)).is_none());
    }

    #[test]
    fn two_forms_of_one_answer_are_a_contradiction() {
        let rule = || Rule::statement("select n from t where id = $1");
        let first = rule().bound((1_i32,)).reply(Rows::new(["n"]).row((1_i32,)));

        assert!(contradiction(&first, &rule().reply(Rows::new(["n"]).row((1_i64,)))).is_some());
        assert!(contradiction(&first, &rule().reply(Rows::new(["n"]).row((2_i32,)))).is_none());
    }
}
