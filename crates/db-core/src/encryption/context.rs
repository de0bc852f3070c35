//! The context that a sealed value is bound to.

use std::fmt;

/// The table, column, row and tenant of a value, and whether its length is hidden. A sealed value authenticates the place and does
/// not contain it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    table: &'static str,
    column: &'static str,
    row: String,
    tenant: Option<String>,
    padding: usize,
}

impl Context {
    /// A column of one row. `row` is the primary key as text; it must never change while the value is stored.
    pub fn new(table: &'static str, column: &'static str, row: impl fmt::Display) -> Self {
        Self { table, column, row: row.to_string(), tenant: None, padding: 0 }
    }

    /// Binds the value to a tenant, too.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// Hides the length of what is sealed: it is padded to a multiple of `multiple` bytes. The value of `"ok"` and that of `"failed"` then have
    /// the same length. Unsealing needs no padding to be named, since a sealed value says whether it is padded. 0 is no padding.
    #[must_use]
    pub fn padded(mut self, multiple: u16) -> Self {
        self.padding = usize::from(multiple);
        self
    }

    /// The multiple to pad to, or 0.
    pub(super) fn padding(&self) -> usize {
        self.padding
    }

    /// Appends the encoding that is authenticated. No two contexts have the same encoding.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for field in [self.table, self.column, &self.row] {
            put(out, field);
        }
        match &self.tenant {
            None => out.push(0),
            Some(tenant) => {
                out.push(1);
                put(out, tenant);
            }
        }
    }
}

/// Appends the length, as four bytes, and the text.
pub(super) fn put(out: &mut Vec<u8>, field: &str) {
    let length = u32::try_from(field.len()).expect("a name or key shorter than 4 GiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(field.as_bytes());
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} of row {}", self.table, self.column, self.row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cannot_run_into_each_other() {
        let encoded = |context: Context| {
            let mut out = Vec::new();
            context.encode(&mut out);
            out
        };

        assert_ne!(encoded(Context::new("ab", "c", 1)), encoded(Context::new("a", "bc", 1)));
        assert_ne!(encoded(Context::new("a", "b", "1")), encoded(Context::new("a", "b", "1").tenant("")));
        assert_eq!(
            encoded(Context::new("t", "c", 7).tenant("x")),
            b"\0\0\0\x01t\0\0\0\x01c\0\0\0\x017\x01\0\0\0\x01x"
        );
    }
}
