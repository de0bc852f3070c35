//! Sealed values in entities of `SeaORM`: bytes, which only a column's handle seals and unseals.

use sea_orm::sea_query::{ArrayType, ColumnType, Nullable, StringLen, Value, ValueType, ValueTypeErr};
use sea_orm::{ColIdx, QueryResult, TryGetError, TryGetable};

use super::Sealed;

impl<T> From<Sealed<T>> for Value {
    fn from(sealed: Sealed<T>) -> Self {
        sealed.as_bytes().to_vec().into()
    }
}

impl<T> TryGetable for Sealed<T> {
    fn try_get_by<I: ColIdx>(res: &QueryResult, index: I) -> Result<Self, TryGetError> {
        Vec::try_get_by(res, index).map(Self::from_bytes)
    }
}

impl<T> ValueType for Sealed<T> {
    fn try_from(v: Value) -> Result<Self, ValueTypeErr> {
        <Vec<u8> as ValueType>::try_from(v).map(Self::from_bytes)
    }

    fn type_name() -> String {
        "Sealed".to_owned()
    }

    fn array_type() -> ArrayType {
        <Vec<u8> as ValueType>::array_type()
    }

    fn column_type() -> ColumnType {
        ColumnType::VarBinary(StringLen::None)
    }
}

impl<T> Nullable for Sealed<T> {
    fn null() -> Value {
        <Vec<u8> as Nullable>::null()
    }
}
