//! Expands an async function into a test.

use quote::{ToTokens, quote};
use syn::{FnArg, ItemFn};

use crate::arguments::Arguments;

pub(crate) fn expand(arguments: &Arguments, function: ItemFn) -> syn::Result<impl ToTokens + use<>> {
    check(&function)?;
    let ItemFn { attrs, vis, sig, block } = function;
    let (name, output) = (&sig.ident, &sig.output);
    let migrations = arguments.migrations.as_ref().map_or_else(
        || quote!(::core::option::Option::None),
        // Relative to the package, whatever the working folder is.
        |path| {
            quote!(::core::option::Option::Some(
                ::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", #path)
            ))
        },
    );
    Ok(quote! {
        #[::core::prelude::v1::test]
        #(#attrs)*
        #vis fn #name() #output {
            #sig #block
            ::db_testkit::__private::run_test(#migrations, #name)
        }
    })
}

fn check(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(syn::Error::new_spanned(signature.fn_token, "a test with a database is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&signature.generics, "a test has no generic parameters"));
    }
    match signature.inputs.iter().collect::<Vec<_>>()[..] {
        [FnArg::Typed(_)] => Ok(()),
        _ => Err(syn::Error::new_spanned(
            &signature.ident,
            "a test with a database has one parameter: `db: TestDb`",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_async_and_takes_one_database() {
        for (text, complaint) in [
            ("fn t(db: TestDb) {}", "`async fn`"),
            ("async fn t() {}", "one parameter"),
            ("async fn t(a: TestDb, b: TestDb) {}", "one parameter"),
            ("async fn t(self) {}", "one parameter"),
            ("async fn t<T>(db: T) {}", "no generic parameters"),
        ] {
            let error = check(&syn::parse_str(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
        assert!(check(&syn::parse_str("async fn t(db: TestDb) -> Result<(), E> {}").unwrap()).is_ok());
    }
}
