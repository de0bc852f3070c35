//! Ranges of the key, and how far each is done.

use serde::{Deserialize, Serialize};

/// The texts of a row's key columns.
pub(super) type KeyTexts = Vec<String>;

/// The rows after one key and up to another, and the last row that is done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    /// None: from the first row.
    after: Option<KeyTexts>,
    /// None: to the last row.
    pub(super) to: Option<KeyTexts>,
    at: Option<KeyTexts>,
    is_done: bool,
    #[serde(skip)]
    is_taken: bool,
}

/// All ranges of a pass. Together they have every row.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Ranges(Vec<Range>);

impl Ranges {
    /// Cuts the table at these keys.
    pub(super) fn new(cuts: &[KeyTexts]) -> Self {
        let ends = cuts.iter().cloned().map(Some).chain([None]);
        let begins = [None].into_iter().chain(cuts.iter().cloned().map(Some));
        let ranges = begins.zip(ends).map(|(after, to)| Range { after, to, ..Range::default() });
        Self(ranges.collect())
    }

    /// A range that nobody works on, and its number.
    pub(super) fn take(&mut self) -> Option<(usize, Range)> {
        let (nth, range) =
            self.0.iter_mut().enumerate().find(|(_, range)| !range.is_taken && !range.is_done)?;
        range.is_taken = true;
        Some((nth, range.clone()))
    }

    pub(super) fn advance(&mut self, nth: usize, at: KeyTexts) {
        self.0[nth].at = Some(at);
    }

    pub(super) fn finish(&mut self, nth: usize) {
        self.0[nth].is_done = true;
    }

    /// Whether something of it is done.
    pub(super) fn is_begun(&self) -> bool {
        self.0.iter().any(|range| range.is_done || range.at.is_some())
    }
}

impl Range {
    /// Where to read on.
    pub(super) fn from(&self) -> Option<&KeyTexts> {
        self.at.as_ref().or(self.after.as_ref())
    }

    pub(super) fn advanced(self, at: KeyTexts) -> Self {
        Self { at: Some(at), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> KeyTexts {
        vec![text.to_owned()]
    }

    #[test]
    fn ranges_have_every_row_and_each_is_taken_once() {
        let mut ranges = Ranges::new(&[key("3"), key("6")]);
        let mut taken = Vec::new();
        while let Some((nth, range)) = ranges.take() {
            taken.push((nth, range.from().cloned(), range.to));
        }

        assert_eq!(
            taken,
            [(0, None, Some(key("3"))), (1, Some(key("3")), Some(key("6"))), (2, Some(key("6")), None)]
        );
    }

    #[test]
    fn what_is_on_record_goes_on_where_it_was() {
        let mut ranges = Ranges::new(&[key("3")]);
        assert!(!ranges.is_begun());
        while ranges.take().is_some() {}
        ranges.finish(0);
        ranges.advance(1, key("5"));

        let record = serde_json::to_string(&ranges).expect("JSON");
        let mut ranges: Ranges = serde_json::from_str(&record).expect("ranges");

        assert!(ranges.is_begun());
        let (nth, range) = ranges.take().expect("the second one");
        assert_eq!((nth, range.from(), ranges.take()), (1, Some(&key("5")), None));
    }
}
