//! Blind indexes: finding rows by the value of a sealed column.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use caseless::Caseless;
use unicode_normalization::UnicodeNormalization;

use super::Shared;
use super::declared::{Declared, Kind};
use crate::encryption::context::put;
use crate::encryption::{Context, EncryptionError, KeyId};

/// The bytes of an index that is not truncated.
const LENGTH: u8 = 16;

/// Which texts count as equal. A part of the index's key: with another normalization, the index is another one.
///
/// Unicode keeps the rules for the characters that it has. A character that it adds later may become equal to another one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Normalization {
    /// Equal bytes only.
    #[default]
    Exact,
    /// Texts that look the same, by Unicode's NFKC: `ﬁ` and `fi`, `é` of one character and of two.
    Nfkc,
    /// The same without regard to case, by Unicode's compatibility caseless match (D146): also `Straße` and `STRASSE`.
    Caseless,
}

impl Normalization {
    /// What is added to the label of the index's key. Empty for `Exact`.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Exact => b"",
            Self::Nfkc => b"nfkc",
            Self::Caseless => b"caseless",
        }
    }

    fn apply(self, text: &str) -> Cow<'_, str> {
        match self {
            Self::Exact => text.into(),
            Self::Nfkc => text.nfkc().collect(),
            Self::Caseless => {
                text.chars().nfd().default_case_fold().nfkd().default_case_fold().nfkd().collect()
            }
        }
    }
}

/// A blind index that is being declared.
#[must_use = "an index is declared by `build`"]
pub struct DeclareIndex {
    shared: Arc<Shared>,
    table: &'static str,
    column: &'static str,
    declared: Declared,
    normalization: Normalization,
    length: u8,
    under: Option<KeyId>,
}

impl DeclareIndex {
    pub(super) fn new(shared: Arc<Shared>, table: &'static str, column: &'static str) -> Self {
        let declared = Declared::of_kind(table, column, Kind::Index { is_unique: false });
        Self {
            shared,
            table,
            column,
            declared,
            normalization: Normalization::default(),
            length: LENGTH,
            under: None,
        }
    }

    /// Says where the index is stored: a column of type `bytea`, beside the sealed one.
    pub fn stored_in(mut self, table: &'static str, column: &'static str) -> Self {
        self.declared = self.declared.stored_in(table, column);
        self
    }

    /// The schema of the table; without it, the `search_path` finds the table.
    pub fn schema(mut self, schema: &'static str) -> Self {
        self.declared = self.declared.schema(schema);
        self
    }

    /// Says which texts count as equal.
    pub fn normalized(mut self, normalization: Normalization) -> Self {
        self.normalization = normalization;
        self
    }

    /// Keeps 1 to 16 bytes of the index (default 16). Fewer bytes give less away, and find rows of other values, too: unseal what was
    /// found, and compare.
    pub fn truncated(mut self, bytes: u8) -> Self {
        self.length = bytes.clamp(1, LENGTH);
        self
    }

    /// Says that the table has a unique index over the column, so that no two rows have equal values. Not together with
    /// [`truncated`](Self::truncated), which would refuse other values as well: the index then has its full length.
    pub fn unique(mut self) -> Self {
        self.declared.kind = Kind::Index { is_unique: true };
        self
    }

    /// Makes the index under this key only, also when another one is primary. A [unique](Self::unique) index needs that: under two keys, one
    /// value has two indexes, and the table would take it twice. To change the key, add a second column that is pinned to the new
    /// key, write both, fill the second, and drop the first.
    pub fn under(mut self, key: KeyId) -> Self {
        self.under = Some(key);
        self
    }

    /// Declares the index.
    #[must_use]
    pub fn build(self) -> BlindIndex {
        let is_unique = self.declared.kind == Kind::Index { is_unique: true };
        self.shared.declared().push(self.declared.clone());
        BlindIndex {
            shared: self.shared,
            declared: self.declared,
            under: self.under,
            table: self.table,
            column: self.column,
            normalization: self.normalization,
            length: if is_unique { LENGTH } else { self.length },
        }
    }
}

impl fmt::Debug for DeclareIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeclareIndex({})", self.declared)
    }
}

/// A declared blind index: HMAC-SHA256 (RFC 2104) of the normalized text, under a key of its own that HKDF derives for this column.
/// Clones are of the same index.
#[derive(Clone)]
pub struct BlindIndex {
    shared: Arc<Shared>,
    declared: Declared,
    under: Option<KeyId>,
    table: &'static str,
    column: &'static str,
    normalization: Normalization,
    length: u8,
}

impl BlindIndex {
    /// What to store beside the sealed value: the index under the primary key, or under the key that it is [pinned](DeclareIndex::under)
    /// to.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::Locked`], and [`EncryptionError::NoIndexKey`] if its key is not there.
    pub fn of(&self, text: &str) -> Result<Vec<u8>, EncryptionError> {
        self.any(text).map(|mut all| all.swap_remove(0))
    }

    /// What to look for: the index under each key of the keyring, the primary key first, or under the key that it is pinned to. For
    /// `where email_index = any((select $1::bytea[])::bytea[])`, which the server plans once, or `= any($1)`, which it plans each time.
    ///
    /// # Errors
    ///
    /// As [`of`](Self::of).
    pub fn any(&self, text: &str) -> Result<Vec<Vec<u8>>, EncryptionError> {
        let place = Context::new(self.table, self.column, "any");
        let strategy = self.shared.strategy(&place)?;
        let text = self.normalization.apply(text);
        let mut names = Vec::new();
        for name in [self.table, self.column] {
            put(&mut names, name);
        }
        let label = [b"db-core blind index\0", &*names, self.normalization.label()];
        let mut all = strategy.blind(&label, text.as_bytes());
        if let Some(key) = self.under {
            all.retain(|(id, _)| *id == key);
        }
        if all.is_empty() {
            return Err(EncryptionError::NoIndexKey { column: format!("{}.{}", self.table, self.column) });
        }
        Ok(all.iter().map(|(_, hash)| hash[..usize::from(self.length)].to_vec()).collect())
    }
}

impl BlindIndex {
    /// The declaration: where the index is stored.
    #[must_use]
    pub fn declared(&self) -> &Declared {
        &self.declared
    }
}

impl fmt::Debug for BlindIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlindIndex({}.{})", self.table, self.column)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Columns;
    use super::*;
    use crate::encryption::{Key, Keyring, NoEncryption};

    fn key(first: u8) -> Key {
        Key::from_bytes((first..first + 32).collect()).expect("32 bytes")
    }

    fn unlocked() -> Columns {
        let columns = Columns::default();
        let keyring = Keyring::new(&key(1)).with_retired(&key(2)).expect("another id");
        columns.unlock(Arc::new(keyring)).expect("no keys yet");
        columns
    }

    fn index(normalization: Normalization) -> BlindIndex {
        unlocked().index("customers", "email").normalized(normalization).build()
    }

    #[test]
    fn each_normalization_finds_what_unicode_calls_equal() {
        use Normalization::{Caseless, Exact, Nfkc};
        for (one, other, equal_by) in [
            ("ada", "ada", &[Exact, Nfkc, Caseless][..]),
            ("\u{e9}", "e\u{301}", &[Nfkc, Caseless]),
            ("\u{fb01}n", "fin", &[Nfkc, Caseless]),
            ("\u{212b}", "\u{c5}", &[Nfkc, Caseless]),
            ("\u{ff21}", "A", &[Nfkc, Caseless]),
            ("Ada", "aDA", &[Caseless]),
            ("Straße", "STRASSE", &[Caseless]),
            ("STRA\u{1e9e}E", "strasse", &[Caseless]),
            ("ΣΑΣ", "σας", &[Caseless]),
            ("\u{130}stanbul", "i\u{307}stanbul", &[Caseless]),
            // The dotless i is another letter.
            ("\u{131}", "I", &[]),
            ("ada", "adb", &[]),
        ] {
            for normalization in [Exact, Nfkc, Caseless] {
                let index = index(normalization);
                let are_equal = index.of(one).expect("a key") == index.of(other).expect("a key");
                assert_eq!(
                    are_equal,
                    equal_by.contains(&normalization),
                    "{one:?}, {other:?}, {normalization:?}"
                );
            }
        }
    }

    /// The blocks of `UnicodeData.txt` that have letters with a case, or with another normal form.
    fn characters() -> impl Iterator<Item = char> {
        ('\0'..='\u{1ffff}').chain('\u{2f800}'..='\u{2fa1f}')
    }

    /// The standard library has its lower case from `UnicodeData.txt`.
    #[test]
    fn without_case_each_character_is_its_lower_case() {
        let folded = |text: &str| Normalization::Caseless.apply(text).into_owned();
        // Of Unicode 17, which the crate `caseless` does not know.
        let is_new = |c| matches!(c, '\u{a7ce}' | '\u{a7d2}' | '\u{a7d4}' | '\u{16ea0}'..='\u{16eb8}');
        let differ: Vec<char> = characters()
            .filter(|c| !is_new(*c) && folded(&c.to_string()) != folded(&c.to_lowercase().to_string()))
            .collect();
        assert!(differ.is_empty(), "{differ:?}");
    }

    #[test]
    fn normalizing_twice_changes_nothing() {
        for normalization in [Normalization::Nfkc, Normalization::Caseless] {
            for c in characters() {
                let once = normalization.apply(&format!("a{c}b")).into_owned();
                assert_eq!(normalization.apply(&once), once, "{c:?}");
            }
        }
    }

    #[test]
    fn an_index_is_that_of_one_column_and_one_normalization() {
        let columns = unlocked();
        let of = |index: BlindIndex| index.of("ada").expect("a key");
        let all = [
            of(columns.index("customers", "email").build()),
            of(columns.index("customers", "name").build()),
            of(columns.index("customer", "semail").build()),
            of(columns.index("customers", "email").normalized(Normalization::Nfkc).build()),
            of(columns.index("customers", "email").normalized(Normalization::Caseless).build()),
        ];
        for (nth, one) in all.iter().enumerate() {
            assert!(!all[..nth].contains(one), "{nth}");
            assert_eq!(one.len(), 16);
        }
    }

    #[test]
    fn any_has_the_index_under_each_key_and_the_primary_one_first() {
        let index = index(Normalization::Exact);
        let any = index.any("ada").expect("keys");
        let rotated = Columns::default();
        let retired = rotated.index("customers", "email").build();
        rotated.unlock(Arc::new(Keyring::new(&key(2)))).expect("no keys yet");

        assert_eq!((any.len(), &any[0]), (2, &index.of("ada").expect("a key")));
        assert_eq!(any[1], retired.of("ada").expect("a key"));
    }

    #[test]
    fn a_pinned_index_is_that_of_its_key_whichever_key_is_primary() {
        let columns = unlocked();
        let free = columns.index("customers", "email").build().any("ada").expect("keys");
        for (key, nth) in [(key(1), 0), (key(2), 1)] {
            let pinned = columns.index("customers", "email").under(key.id()).build();
            assert_eq!(pinned.any("ada").expect("a key"), [free[nth].clone()]);
            assert_eq!(pinned.of("ada").expect("a key"), free[nth]);
        }
        let absent = columns.index("customers", "email").under(key(3).id()).build();
        let error = absent.of("ada").expect_err("no such key");
        assert_eq!(error.to_string(), "customers.email: the key of its blind index is not there");
    }

    #[test]
    fn a_truncated_index_is_the_beginning_and_a_unique_one_is_whole() {
        let columns = unlocked();
        let whole = columns.index("customers", "email").build().of("ada").expect("a key");
        for (asked, kept) in [(0, 1), (3, 3), (16, 16), (200, 16)] {
            let short = columns.index("customers", "email").truncated(asked).build();
            assert_eq!(short.of("ada").expect("a key"), whole[..kept], "{asked}");
        }
        let unique = columns.index("customers", "email").truncated(3).unique().build();
        assert_eq!(unique.of("ada").expect("a key"), whole);
    }

    #[test]
    fn without_a_key_there_is_no_index() {
        let columns = Columns::default();
        let index = columns.index("customers", "email").build();

        let locked = index.of("ada").expect_err("no keys yet");
        columns.unlock(Arc::new(NoEncryption)).expect("no keys yet");
        let without = index.any("ada").expect_err("no key");

        assert!(matches!(locked, EncryptionError::Locked { .. }), "{locked}");
        assert_eq!(without.to_string(), "customers.email: the key of its blind index is not there");
    }
}
