//! The context that a sealed value is bound to.

use std::borrow::Cow;
use std::fmt;
use std::io::Write as _;

/// The bytes of a text's length.
const LENGTH: usize = 4;

/// The table, column, row and tenant of a value, and whether its length is hidden. A sealed value authenticates the place and does
/// not contain it.
#[derive(Clone, PartialEq, Eq)]
pub struct Context {
    /// The table, column and row, each after its length; then 0, or 1 and the tenant in the same way. No two places have the same
    /// encoding. It is made once, though each seal authenticates it.
    encoded: Vec<u8>,
    /// Where the tenant begins.
    tenant_at: usize,
    padding: usize,
}

/// Enough for most places. A longer one is allocated again.
const USUAL: usize = 96;

impl Context {
    /// A column of one row. `row` is the primary key as text; it must never change while the value is stored.
    pub fn new(
        table: impl Into<Cow<'static, str>>,
        column: impl Into<Cow<'static, str>>,
        row: impl fmt::Display,
    ) -> Self {
        let mut encoded = Vec::with_capacity(USUAL);
        put(&mut encoded, table.into());
        put(&mut encoded, column.into());
        put(&mut encoded, row);
        let tenant_at = encoded.len();
        encoded.push(0);
        Self { encoded, tenant_at, padding: 0 }
    }

    /// Binds the value to a tenant, too.
    #[must_use]
    pub fn tenant(mut self, tenant: impl Into<String>) -> Self {
        self.encoded.truncate(self.tenant_at);
        self.encoded.push(1);
        put(&mut self.encoded, tenant.into());
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

    /// The encoding that is authenticated.
    pub(super) fn encoded(&self) -> &[u8] {
        &self.encoded
    }
}

/// Appends the text after its length, which is four bytes.
pub(super) fn put(out: &mut Vec<u8>, text: impl fmt::Display) {
    let at = out.len() + LENGTH;
    out.resize(at, 0);
    write!(out, "{text}").expect("memory can be written to");
    let length = u32::try_from(out.len() - at).expect("a name or key shorter than 4 GiB");
    out[at - LENGTH..at].copy_from_slice(&length.to_be_bytes());
}

/// The first text, and what follows it.
fn split(encoded: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = encoded.split_first_chunk()?;
    let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length).try_into().ok()?)?;
    Some((str::from_utf8(text).ok()?, rest))
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenant = split(&self.encoded[self.tenant_at + 1..]).map(|(tenant, _)| tenant);
        f.debug_struct("Context")
            .field("place", &format_args!("{self}"))
            .field("tenant", &tenant)
            .field("padding", &self.padding)
            .finish()
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, rest) = split(&self.encoded).ok_or(fmt::Error)?;
        let (column, rest) = split(rest).ok_or(fmt::Error)?;
        let (row, _) = split(rest).ok_or(fmt::Error)?;
        write!(f, "{table}.{column} of row {row}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_cannot_run_into_each_other() {
        let encoded = |context: Context| context.encoded().to_vec();

        assert_ne!(encoded(Context::new("ab", "c", 1)), encoded(Context::new("a", "bc", 1)));
        assert_ne!(encoded(Context::new("a", "b", "1")), encoded(Context::new("a", "b", "1").tenant("")));
        assert_eq!(
            encoded(Context::new("t", "c", 7).tenant("x")),
            b"\0\0\0\x01t\0\0\0\x01c\0\0\0\x017\x01\0\0\0\x01x"
        );
        let again = Context::new("t", "c", 7).tenant("another").tenant("x");
        assert_eq!(again, Context::new("t", "c", 7).tenant("x"));
        assert_eq!(again.to_string(), "t.c of row 7");
        assert_eq!(format!("{again:?}"), "Context { place: t.c of row 7, tenant: Some(\"x\"), padding: 0 }");
        assert_eq!(
            format!("{:?}", Context::new("t", "c", 7).padded(8)),
            "Context { place: t.c of row 7, tenant: None, padding: 8 }"
        );
    }
}
