//! The attribute macro of `db-testkit`, which re-exports and documents it.

mod arguments;
mod expand;

use proc_macro::TokenStream;
use syn::parse_macro_input;

/// See `db_testkit::test`.
#[proc_macro_attribute]
pub fn test(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let arguments = parse_macro_input!(arguments as arguments::Arguments);
    let function = parse_macro_input!(item as syn::ItemFn);
    expand::expand(&arguments, function)
        .map_or_else(syn::Error::into_compile_error, |tokens| quote::quote!(#tokens))
        .into()
}
