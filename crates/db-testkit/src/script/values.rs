//! Values in the binary form of PostgreSQL, made by the driver's own encoding.

use sqlx::encode::IsNull;
use sqlx::postgres::{PgArgumentBuffer, PgTypeInfo, Postgres};
use sqlx::{Encode, Type, TypeInfo};

/// One value in binary form; `None` is NULL.
pub(super) type Cell = Option<Vec<u8>>;

/// A column of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) oid: u32,
}

impl Column {
    pub(super) fn new(name: &str, oid: u32) -> Column {
        Column { name: name.to_owned(), oid }
    }
}

/// The values of a row, or those bound to a statement: a tuple of up to twelve values that sqlx can encode.
///
/// A value that may be NULL is an [`Option`].
pub trait Values {
    /// A name for each value.
    type Names: IntoIterator<Item = &'static str>;

    #[doc(hidden)]
    fn types() -> Vec<PgTypeInfo>;

    #[doc(hidden)]
    fn cells(self) -> Result<Vec<Cell>, String>;
}

fn cell<'q, T: Encode<'q, Postgres> + Type<Postgres>>(value: T) -> Result<Cell, String> {
    let mut buffer = PgArgumentBuffer::default();
    match value.encode(&mut buffer) {
        Ok(IsNull::Yes) => Ok(None),
        Ok(IsNull::No) => Ok(Some(buffer.to_vec())),
        Err(error) => Err(format!("a value of type {} cannot be encoded: {error}", T::type_info().name())),
    }
}

/// The number of a type. A type that is known by its name only has none without a database.
pub(super) fn oid(info: &PgTypeInfo) -> Result<u32, String> {
    info.oid().map(|oid| oid.0).ok_or_else(|| {
        format!("the type {} has no number without a database: the driver could not read it", info.name())
    })
}

macro_rules! tuple {
    ($count:literal: $($T:ident $value:ident),*) => {
        impl<$($T),*> Values for ($($T,)*)
        where
            $($T: for<'q> Encode<'q, Postgres> + Type<Postgres>,)*
        {
            type Names = [&'static str; $count];

            fn types() -> Vec<PgTypeInfo> {
                vec![$($T::type_info()),*]
            }

            fn cells(self) -> Result<Vec<Cell>, String> {
                let ($($value,)*) = self;
                Ok(vec![$(cell($value)?),*])
            }
        }
    };
}

tuple!(0:);
tuple!(1: A a);
tuple!(2: A a, B b);
tuple!(3: A a, B b, C c);
tuple!(4: A a, B b, C c, D d);
tuple!(5: A a, B b, C c, D d, E e);
tuple!(6: A a, B b, C c, D d, E e, F f);
tuple!(7: A a, B b, C c, D d, E e, F f, G g);
tuple!(8: A a, B b, C c, D d, E e, F f, G g, H h);
tuple!(9: A a, B b, C c, D d, E e, F f, G g, H h, I i);
tuple!(10: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j);
tuple!(11: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k);
tuple!(12: A a, B b, C c, D d, E e, F f, G g, H h, I i, J j, K k, L l);
