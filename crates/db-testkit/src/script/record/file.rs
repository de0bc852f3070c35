//! A recording as a value: its file, its rules, and how it differs from another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::to_raw_value;

use super::Varying;
use crate::script::own::Own;
use crate::script::reply::{Answer as Told, Before, Reply, ServerError, Table};
use crate::script::rule::{Bound, Rule};
use crate::script::session::ABORTED;
use crate::script::text::{binary, text, type_name, type_named};
use crate::script::values::{Cell, Column};

/// The form of the file. A later form has another number.
const FORM: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Recording {
    form: u32,
    statements: Vec<Statement>,
}

/// A statement with its values, and its answers in their order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    #[serde(rename = "statement")]
    text: String,
    /// With their types. `None` if the statement was refused before it had any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    values: Option<Line<Vec<(String, Value)>>>,
    answers: Vec<Repeated>,
}

/// An answer, and how often it came in succession.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Repeated {
    #[serde(default = "once", skip_serializing_if = "is_once")]
    times: u32,
    answer: Answer,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Answer {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) notices: Vec<Fields>,
    /// With their types.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) columns: Option<Line<Vec<(String, String)>>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) rows: Vec<Line<Vec<Value>>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) tag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<Fields>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Value {
    /// NULL.
    Null,
    /// As PostgreSQL writes it.
    Text(String),
    /// In binary form.
    Hex { hex: String },
    /// Any value.
    Varies { varies: bool },
}

/// The fields of an error or a notice, by the names that [`ServerError`] has for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Fields(BTreeMap<String, String>);

/// Written on one line.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(super) struct Line<T>(pub(super) T);

impl<T: Serialize> Serialize for Line<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        to_raw_value(&self.0).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

fn once() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it")]
fn is_once(times: &u32) -> bool {
    *times == 1
}

/// What was asked once, and answered.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) text: String,
    pub(super) values: Option<Vec<(String, Value)>>,
    pub(super) answer: Answer,
}

impl Recording {
    /// In the order in which the statements first came.
    pub(super) fn of(exchanges: Vec<Exchange>, varying: &Varying) -> Recording {
        let mut statements = Vec::<Statement>::new();
        // A session refuses these by itself, too.
        let kept = exchanges.into_iter().filter(|it| !it.answer.is_refused_with(ABORTED));
        for Exchange { text, mut values, answer } in kept {
            for (part, number) in &varying.values {
                if text.contains(part)
                    && let Some((_, value)) =
                        values.as_mut().and_then(|them| them.get_mut(number.wrapping_sub(1)))
                {
                    *value = Value::Varies { varies: true };
                }
            }
            let values = values.map(Line);
            let at = statements.iter().position(|it| it.text == text && it.values == values);
            let at = at.unwrap_or_else(|| {
                statements.push(Statement { text, values, answers: Vec::new() });
                statements.len() - 1
            });
            match statements[at].answers.last_mut() {
                Some(last) if last.answer == answer => last.times += 1,
                _ => statements[at].answers.push(Repeated { times: 1, answer }),
            }
        }
        // A session answers these by itself; the identity of a session, for one, is another each time.
        statements.retain(|it| Own::of(&it.text).is_none() || it.is_refused());
        Recording { form: FORM, statements }
    }

    pub(super) fn read(file: &Path) -> Result<Recording, String> {
        let text = fs::read_to_string(file).map_err(|error| error.to_string())?;
        let recording: Recording = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if recording.form != FORM {
            return Err(format!(
                "a recording of form {}, and this version reads form {FORM}",
                recording.form
            ));
        }
        Ok(recording)
    }

    pub(super) fn write(&self, file: &Path) -> Result<(), String> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder).map_err(|error| error.to_string())?;
        }
        fs::write(file, pretty(self) + "\n").map_err(|error| error.to_string())
    }

    /// A list of rules for each statement with its values, which are used in their order.
    pub(super) fn rules(&self) -> Result<Vec<Vec<Rule>>, String> {
        let rules = |it: &Statement| {
            let rules = it.answers.iter().map(|answer| it.rule(answer)).collect::<Result<Vec<_>, _>>();
            rules.map_err(|why| format!("`{}`: {why}", it.text))
        };
        self.statements.iter().map(rules).collect()
    }

    /// How a later run differs.
    pub(super) fn difference(&self, now: &Recording, varying: &Varying) -> Option<String> {
        let mut difference = String::new();
        // Writing to a string does not fail.
        for there in &self.statements {
            match now.statements.iter().find(|it| it.is_same(there)) {
                None => {
                    let _ = writeln!(difference, "recorded, and not asked now: {}", there.name());
                }
                Some(here) => {
                    let (recorded, came) = (there.answers(varying), here.answers(varying));
                    if recorded != came {
                        let lines = changed(&pretty(&recorded), &pretty(&came));
                        let _ = writeln!(
                            difference,
                            "another answer (- was recorded, + came now): {}\n{lines}",
                            there.name()
                        );
                    }
                }
            }
        }
        for here in &now.statements {
            if !self.statements.iter().any(|it| it.is_same(here)) {
                let _ = writeln!(difference, "asked now, and not recorded: {}", here.name());
            }
        }
        (!difference.is_empty()).then_some(difference)
    }
}

impl Statement {
    fn is_same(&self, other: &Statement) -> bool {
        self.text == other.text && self.values == other.values
    }

    fn is_refused(&self) -> bool {
        self.answers.iter().any(|it| it.answer.error.is_some())
    }

    /// For a message.
    fn name(&self) -> String {
        let values = self.values.iter().flat_map(|it| &it.0).map(|(_, value)| value).collect::<Vec<_>>();
        if values.is_empty() {
            return format!("`{}`", self.text);
        }
        format!("`{}` with {}", self.text, serde_json::to_string(&values).expect("values become JSON"))
    }

    /// One after the other, without what varies.
    fn answers(&self, varying: &Varying) -> Vec<Answer> {
        let answers = self.answers.iter().flat_map(|it| (0..it.times).map(|_| it.answer.clone()));
        answers.map(|answer| answer.without(varying)).collect()
    }

    fn rule(&self, Repeated { times, answer }: &Repeated) -> Result<Rule, String> {
        let mut rule = Rule::statement(&self.text).reply(answer.reply()?).times(*times);
        if let Some(values) = &self.values {
            let bound = values.0.iter().map(|(name, value)| {
                let oid = oid(name)?;
                let is_any = matches!(value, Value::Varies { .. });
                Ok((Bound { oid, value: if is_any { None } else { value.cell(oid)? } }, is_any))
            });
            rule = rule.recorded(bound.collect::<Result<_, String>>()?);
        }
        Ok(rule)
    }
}

impl Answer {
    fn is_refused_with(&self, sqlstate: &str) -> bool {
        self.error.as_ref().and_then(|it| it.0.get("sqlstate")).is_some_and(|it| it == sqlstate)
    }

    fn without(mut self, varying: &Varying) -> Answer {
        let names = self.columns.iter().flat_map(|it| &it.0);
        let varies: Vec<bool> = names.map(|(name, _)| varying.columns.contains(name)).collect();
        for row in &mut self.rows {
            for (value, _) in row.0.iter_mut().zip(&varies).filter(|(_, varies)| **varies) {
                *value = Value::Varies { varies: true };
            }
        }
        self
    }

    fn reply(&self) -> Result<Reply, String> {
        let mut table = Table::tag(self.tag.clone().unwrap_or_default());
        for (name, kind) in self.columns.iter().flat_map(|it| &it.0) {
            table.columns.push(Column::new(name, oid(kind)?));
        }
        for row in &self.rows {
            if row.0.len() != table.columns.len() {
                return Err(format!("a row of {} values, and {} columns", row.0.len(), table.columns.len()));
            }
            let cells = row.0.iter().zip(&table.columns).map(|(value, column)| value.cell(column.oid));
            table.rows.push(cells.collect::<Result<_, _>>()?);
        }
        let mut reply = Reply::of(match &self.error {
            None => Told::Rows(table),
            Some(fields) => Told::Error(fields.error()?),
        });
        for notice in &self.notices {
            reply.before.push(Before::Notice(notice.error()?));
        }
        Ok(reply)
    }
}

impl Value {
    /// From binary form.
    pub(super) fn of(oid: u32, value: Option<&[u8]>) -> Value {
        let Some(value) = value else { return Value::Null };
        let shown = text(oid, value).filter(|text| binary(oid, text).as_deref() == Some(value));
        shown.map_or_else(|| Value::Hex { hex: const_hex::encode(value) }, Value::Text)
    }

    /// From text form. `None` if the script does not know that of the type.
    pub(super) fn of_text(oid: u32, value: &[u8]) -> Option<Value> {
        let shown = std::str::from_utf8(value).ok()?;
        let is_known = text(oid, &binary(oid, shown)?).as_deref() == Some(shown);
        is_known.then(|| Value::Text(shown.to_owned()))
    }

    fn cell(&self, oid: u32) -> Result<Cell, String> {
        let wrong = |shown: &str| format!("{shown:?} is no value of type {}", type_name(oid));
        match self {
            Value::Null => Ok(None),
            Value::Text(text) => binary(oid, text).map(Some).ok_or_else(|| wrong(text)),
            Value::Hex { hex } => const_hex::decode(hex).map(Some).map_err(|_| wrong(hex)),
            Value::Varies { .. } => Err("a value of a row cannot vary".to_owned()),
        }
    }
}

fn oid(name: &str) -> Result<u32, String> {
    type_named(name).ok_or_else(|| format!("there is no type {name:?}"))
}

/// The fields by their letters in the protocol. Those about the server's source differ between its versions, and are not kept.
const FIELDS: [(u8, &str); 14] = [
    (b'V', "severity"),
    (b'C', "sqlstate"),
    (b'M', "message"),
    (b'D', "detail"),
    (b'H', "hint"),
    (b'P', "position"),
    (b'p', "internal_position"),
    (b'q', "internal_query"),
    (b'W', "context"),
    (b's', "schema"),
    (b't', "table"),
    (b'c', "column"),
    (b'd', "data_type"),
    (b'n', "constraint"),
];

impl Fields {
    pub(super) fn of(fields: &[(u8, String)]) -> Fields {
        let named = |(letter, value): &(u8, String)| {
            let (_, name) = FIELDS.iter().find(|(there, _)| there == letter)?;
            Some(((*name).to_owned(), value.clone()))
        };
        Fields(fields.iter().filter_map(named).collect())
    }

    fn error(&self) -> Result<ServerError, String> {
        let get = |name: &str| self.0.get(name).ok_or_else(|| format!("an error without {name}"));
        let mut error = ServerError::new(get("sqlstate")?, get("message")?).severity(get("severity")?);
        for (name, value) in &self.0 {
            let (letter, _) = FIELDS
                .iter()
                .find(|(_, there)| there == name)
                .ok_or_else(|| format!("an error has no {name:?}"))?;
            error = error.set(*letter, value);
        }
        Ok(error)
    }
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("a recording becomes JSON")
}

/// The lines that differ, without those that both have at the beginning and at the end.
fn changed(recorded: &str, now: &str) -> String {
    let (recorded, now): (Vec<_>, Vec<_>) = (recorded.lines().collect(), now.lines().collect());
    let begin = recorded.iter().zip(&now).take_while(|(there, here)| there == here).count();
    let rest = recorded.len().min(now.len()) - begin;
    let end = recorded
        .iter()
        .rev()
        .zip(now.iter().rev())
        .take(rest)
        .take_while(|(there, here)| there == here)
        .count();
    let signed = |sign, lines: &[&str]| lines.iter().map(|line| format!("{sign} {line}")).collect::<Vec<_>>();
    let gone = signed('-', &recorded[begin..recorded.len() - end]);
    [gone, signed('+', &now[begin..now.len() - end])].concat().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const INT4_ARRAY: u32 = 1007;

    #[test]
    fn a_value_whose_text_does_not_lead_back_to_its_bytes_is_kept_in_hexadecimal_digits() {
        let ints = |them: &[i32]| -> Vec<u8> { them.iter().flat_map(|it| it.to_be_bytes()).collect() };
        let (flat, deep) = (ints(&[1, 0, 23, 1, 1, 4, 7]), ints(&[2, 0, 23, 1, 1, 1, 1, 4, 7]));

        assert_eq!(Value::of(INT4_ARRAY, Some(&flat)), Value::Text("{7}".to_owned()));
        assert_eq!(Value::of(INT4_ARRAY, Some(&deep)), Value::Hex { hex: const_hex::encode(&deep) });
        assert_eq!(Value::of_text(INT4_ARRAY, b"{7}"), Some(Value::Text("{7}".to_owned())));
        assert_eq!(Value::of_text(1009, b"{{a}}"), None);
    }

    #[test]
    fn only_the_lines_that_differ_are_shown() {
        assert_eq!(changed("a\nb\nc", "a\nx\ny\nc"), "- b\n+ x\n+ y");
        assert_eq!(changed("a\na", "a\na\na"), "+ a");
    }
}
