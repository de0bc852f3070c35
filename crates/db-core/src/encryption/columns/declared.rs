//! What is declared of a column.

use std::borrow::Cow;
use std::fmt;

use super::KeyType;
use super::row::row;
use crate::encryption::{Context, EncryptionError, form};

type Name = Cow<'static, str>;

/// A sealed column or a blind index as it is declared: its names, the key of its rows, and its padding.
///
/// [`Columns::declared`](super::Columns::declared) lists those of a program, for whatever has to walk all of them, such as
/// re-keying. A tool that is told of a column while it runs makes one:
///
/// ```
/// use db_core::encryption::{Declared, KeyType};
///
/// let iban = Declared::new("customers", "iban").stored_in("clients", "iban_sealed").key("id", KeyType::BigInt);
///
/// assert_eq!(iban.to_string(), "customers.iban");
/// assert_eq!(iban.relation(), r#""clients""#);
/// assert_eq!(iban.place(vec!["17".to_owned()])?.to_string(), "customers.iban of row 17");
/// # Ok::<(), db_core::encryption::EncryptionError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Declared {
    logical: (Name, Name),
    schema: Option<Name>,
    stored: (Name, Name),
    key: Vec<(Name, KeyType)>,
    padding: u16,
    pub(super) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Sealed,
    Index { is_unique: bool },
}

impl Declared {
    /// A sealed column by its logical names, stored under the same names.
    #[must_use]
    pub fn new(table: impl Into<Name>, column: impl Into<Name>) -> Self {
        Self::of_kind(table, column, Kind::Sealed)
    }

    pub(super) fn of_kind(table: impl Into<Name>, column: impl Into<Name>, kind: Kind) -> Self {
        let logical = (table.into(), column.into());
        Self { stored: logical.clone(), logical, schema: None, key: Vec::new(), padding: 0, kind }
    }

    /// The physical names of table and column.
    #[must_use]
    pub fn stored_in(mut self, table: impl Into<Name>, column: impl Into<Name>) -> Self {
        self.stored = (table.into(), column.into());
        self
    }

    /// The schema of the table; without it, the `search_path` finds the table.
    #[must_use]
    pub fn schema(mut self, schema: impl Into<Name>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Adds a column of the rows' key by its physical name.
    #[must_use]
    pub fn key(mut self, column: impl Into<Name>, kind: KeyType) -> Self {
        self.key.push((column.into(), kind));
        self
    }

    /// The multiple of bytes that values are padded to, 0 for none.
    #[must_use]
    pub fn padded(mut self, multiple: u16) -> Self {
        self.padding = multiple;
        self
    }

    /// The logical name of the table, which is authenticated.
    #[must_use]
    pub fn table(&self) -> &str {
        &self.logical.0
    }

    /// The logical name of the column, which is authenticated. For an index, that of the column whose values it finds.
    #[must_use]
    pub fn column(&self) -> &str {
        &self.logical.1
    }

    /// The physical schema, if one is declared.
    #[must_use]
    pub fn stored_schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The physical table.
    #[must_use]
    pub fn stored_table(&self) -> &str {
        &self.stored.0
    }

    /// The physical column.
    #[must_use]
    pub fn stored_column(&self) -> &str {
        &self.stored.1
    }

    /// The physical names and types of the key columns, in the order in which they are authenticated. None for an index.
    #[must_use]
    pub fn key_columns(&self) -> &[(Name, KeyType)] {
        &self.key
    }

    /// The multiple of bytes that values are padded to, 0 for none.
    #[must_use]
    pub fn padding(&self) -> u16 {
        self.padding
    }

    /// Whether it is a blind index, and not a sealed column.
    #[must_use]
    pub fn is_index(&self) -> bool {
        self.kind != Kind::Sealed
    }

    /// The physical table as SQL: quoted, with the schema if one is declared.
    #[must_use]
    pub fn relation(&self) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quoted(schema), quoted(&self.stored.0)),
            None => quoted(&self.stored.0),
        }
    }

    /// The place that a value is sealed for, by the text of each key column as PostgreSQL writes it.
    ///
    /// # Errors
    ///
    /// [`EncryptionError::RowKey`] for another number of texts than of declared key columns.
    pub fn place(&self, key: Vec<String>) -> Result<Context, EncryptionError> {
        if key.len() != self.key.len() {
            return Err(EncryptionError::RowKey {
                column: self.to_string(),
                given: key.len(),
                declared: self.key.len(),
            });
        }
        let (table, column) = self.logical.clone();
        Ok(Context::new(table, column, row(key)).padded(self.padding))
    }

    /// An SQL expression over the stored column: the key's id as 8 hexadecimal digits, `plain` for what is not sealed, `newer` for a
    /// form that this program does not know, `cut` for what is not a whole value, null for null. It reads the header alone,
    /// as unsealing does.
    #[must_use]
    pub fn header_sql(&self) -> String {
        form::header_sql(&quoted(&self.stored.1))
    }
}

/// The logical names, as `table.column`.
impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, column) = &self.logical;
        match self.kind {
            Kind::Sealed => write!(f, "{table}.{column}"),
            Kind::Index { .. } => write!(f, "index of {table}.{column}"),
        }
    }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
