//! How values become bytes.

use std::fmt::{Display, Write as _};
use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

/// Functions of a type's bytes. `None` when value and type do not agree; why is not said, since errors would quote the value.
pub(super) struct Codec<T> {
    pub(super) encode: fn(&T) -> Option<Zeroizing<Vec<u8>>>,
    pub(super) decode: fn(&[u8]) -> Option<T>,
}

impl<T> Clone for Codec<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Codec<T> {}

impl<T: Serialize + DeserializeOwned> Codec<T> {
    pub(super) fn json() -> Self {
        Self {
            encode: |value| serde_json::to_vec(value).ok().map(Zeroizing::new),
            decode: |bytes| serde_json::from_slice(bytes).ok(),
        }
    }
}

impl<T: Display + FromStr> Codec<T> {
    pub(super) fn text() -> Self {
        Self {
            encode: |value| {
                let mut text = Zeroizing::new(String::new());
                write!(text, "{value}").ok()?;
                Some(Zeroizing::new(std::mem::take(&mut *text).into_bytes()))
            },
            decode: |bytes| std::str::from_utf8(bytes).ok()?.parse().ok(),
        }
    }
}

impl<T: AsRef<[u8]> + From<Vec<u8>>> Codec<T> {
    pub(super) fn bytes() -> Self {
        Self {
            encode: |value| Some(Zeroizing::new(value.as_ref().to_vec())),
            decode: |bytes| Some(bytes.to_vec().into()),
        }
    }
}
