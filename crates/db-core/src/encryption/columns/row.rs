//! The keys of rows.

use std::fmt;

use sqlx::types::time::Date;

/// The type of a key column. These are the types whose text is the same in every session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyType {
    /// `smallint`
    SmallInt,
    /// `integer`
    Integer,
    /// `bigint`
    BigInt,
    /// `uuid`; its text has hyphens and lower-case digits.
    Uuid,
    /// `text`
    Text,
    /// `character varying`
    Varchar,
    /// `boolean`; its text is `true` or `false`.
    Bool,
    /// `date`; its text is `2026-11-27`.
    Date,
}

impl KeyType {
    /// All types.
    pub(super) const ALL: [Self; 8] = [
        Self::SmallInt,
        Self::Integer,
        Self::BigInt,
        Self::Uuid,
        Self::Text,
        Self::Varchar,
        Self::Bool,
        Self::Date,
    ];

    /// The type of this name in PostgreSQL; `int`, `varchar` and `bool`, too.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "int" => Some(Self::Integer),
            "varchar" => Some(Self::Varchar),
            "bool" => Some(Self::Bool),
            _ => Self::ALL.into_iter().find(|kind| kind.name() == name),
        }
    }

    /// The type's name in PostgreSQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SmallInt => "smallint",
            Self::Integer => "integer",
            Self::BigInt => "bigint",
            Self::Uuid => "uuid",
            Self::Text => "text",
            Self::Varchar => "character varying",
            Self::Bool => "boolean",
            Self::Date => "date",
        }
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The value of a row's key: a number, a text, a `bool`, a date, or a tuple of up to four of them. A `uuid` is given as its text.
pub trait RowKey {
    /// The text of each key column, as PostgreSQL writes it.
    fn texts(&self) -> Vec<String>;
}

impl<K: RowKey + ?Sized> RowKey for &K {
    fn texts(&self) -> Vec<String> {
        (**self).texts()
    }
}

macro_rules! one {
    ($($key:ty),*) => {$(
        impl RowKey for $key {
            fn texts(&self) -> Vec<String> {
                vec![self.to_string()]
            }
        }
    )*};
}

one!(i16, i32, i64, bool, str, String, Date);

macro_rules! several {
    ($($key:ident $at:tt),*) => {
        impl<$($key: RowKey),*> RowKey for ($($key,)*) {
            fn texts(&self) -> Vec<String> {
                [$(self.$at.texts()),*].concat()
            }
        }
    };
}

several!(A 0, B 1);
several!(A 0, B 1, C 2);
several!(A 0, B 1, C 2, D 3);

/// The row that is authenticated: the text of its key, or for several key columns a JSON array of their texts.
pub(super) fn row(mut texts: Vec<String>) -> String {
    match texts.len() {
        1 => texts.remove(0),
        _ => serde_json::to_string(&texts).expect("texts become JSON"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_the_text_that_postgresql_writes() {
        assert_eq!(row(17_i64.texts()), "17");
        assert_eq!(row("a".texts()), "a");
        assert_eq!(row(true.texts()), "true");
        let date = Date::from_ordinal_date(2026, 2).expect("a day");
        assert_eq!(row(date.texts()), "2026-01-02");
        assert_eq!(row((7, "a,\"b").texts()), r#"["7","a,\"b"]"#);
    }

    #[test]
    fn the_columns_of_a_key_cannot_run_into_each_other() {
        assert_ne!(row(("a", "bc").texts()), row(("ab", "c").texts()));
        assert_ne!(row(("a\",\"b", "c").texts()), row(("a", "b\",\"c").texts()));
    }
}
