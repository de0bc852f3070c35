//! The derive macro of `db-core`, which re-exports and documents it.

mod arguments;
mod expand;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// See `db_core::encryption::Sealed`.
#[proc_macro_derive(Sealed, attributes(sealed))]
pub fn sealed(item: TokenStream) -> TokenStream {
    let item = parse_macro_input!(item as syn::DeriveInput);
    expand::expand(&item).map_or_else(syn::Error::into_compile_error, |tokens| quote::quote!(#tokens)).into()
}
