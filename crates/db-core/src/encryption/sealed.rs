//! The type of a column of sealed values.

use std::fmt;
use std::marker::PhantomData;

use serde::{Serialize, Serializer};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef};
use sqlx::{Decode, Encode, Postgres, Type};

use super::KeyId;

/// A sealed value of type `T`, as stored in a `bytea` column.
///
/// sqlx decodes a column without knowing its row or the key, so decoding gives a `Sealed`, and
/// [`Column::unseal`](super::Column::unseal) unseals it. `Vec<Sealed<T>>` binds to `bytea[]`, for `unnest`. With the feature `sea-orm`,
/// a `Sealed` is a field of an entity. It is saved as it was read, byte for byte.
///
/// `Debug` shows the length only, and `Serialize` writes `"(sealed)"`. Two sealed values are equal when their bytes are: the same
/// value sealed twice is not.
pub struct Sealed<T> {
    bytes: Vec<u8>,
    value: PhantomData<fn() -> T>,
}

impl<T> Sealed<T> {
    /// Wraps the stored bytes.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self { bytes, value: PhantomData }
    }

    /// The stored bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key that the value names, without unsealing it. `None` when the bytes are not a sealed value of a known form.
    #[must_use]
    pub fn key_id(&self) -> Option<KeyId> {
        KeyId::of_sealed(&self.bytes)
    }
}

impl<T> Clone for Sealed<T> {
    fn clone(&self) -> Self {
        Self::from_bytes(self.bytes.clone())
    }
}

impl<T> fmt::Debug for Sealed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.bytes.len())
    }
}

impl<T> PartialEq for Sealed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl<T> Eq for Sealed<T> {}

impl<T> Serialize for Sealed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("(sealed)")
    }
}

impl<T> Type<Postgres> for Sealed<T> {
    fn type_info() -> PgTypeInfo {
        <[u8] as Type<Postgres>>::type_info()
    }
}

impl<T> Encode<'_, Postgres> for Sealed<T> {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        <&[u8] as Encode<Postgres>>::encode(self.as_bytes(), buf)
    }
}

impl<'r, T> Decode<'r, Postgres> for Sealed<T> {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        <Vec<u8> as Decode<Postgres>>::decode(value).map(Self::from_bytes)
    }
}

impl<T> PgHasArrayType for Sealed<T> {
    fn array_type_info() -> PgTypeInfo {
        <Vec<u8> as PgHasArrayType>::array_type_info()
    }
}
