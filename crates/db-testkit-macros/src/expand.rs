//! Expands an async function into a test.

use quote::{ToTokens, format_ident, quote};
use syn::{FnArg, ItemFn, LitStr};

use crate::arguments::{Arguments, Flavor};

pub(crate) fn expand(arguments: &Arguments, function: ItemFn) -> syn::Result<impl ToTokens + use<>> {
    check(&function)?;
    let ItemFn { attrs, vis, sig, block } = function;
    let (name, output) = (&sig.ident, &sig.output);
    let plan = plan(arguments)?;
    let databases: Vec<_> = (0..sig.inputs.len()).map(|number| format_ident!("db_{number}")).collect();
    Ok(quote! {
        #[::core::prelude::v1::test]
        #(#attrs)*
        #vis fn #name() #output {
            #sig #block
            // As a value, or clippy would lint a test without an `await`.
            let body = #name;
            ::db_testkit::__private::run_test(&#plan, async |[#(#databases),*]| body(#(#databases),*).await)
        }
    })
}

/// Only the fields that differ from the default.
fn plan(arguments: &Arguments) -> syn::Result<impl ToTokens + use<>> {
    let mut fields = Vec::new();
    if let Some(folder) = &arguments.migrations {
        let folder = in_package(folder);
        fields.push(quote!(migrations: ::core::option::Option::Some(#folder)));
    }
    if !arguments.fixtures.is_empty() {
        let files = arguments.fixtures.iter().map(in_package);
        fields.push(quote!(fixtures: &[#(#files),*]));
    }
    if arguments.is_throwaway {
        fields.push(quote!(throwaway: true));
    }
    if !arguments.leaves.is_empty() {
        let leaves = &arguments.leaves;
        fields.push(quote!(leaves: &[#(#leaves),*]));
    }
    if arguments.is_strict {
        fields.push(quote!(strict: true));
    }
    match (arguments.flavor, &arguments.worker_threads) {
        (Flavor::CurrentThread, _) => fields.push(quote!(workers: ::core::option::Option::None)),
        (Flavor::MultiThread, Some(number)) => {
            let number: usize = number.base10_parse()?;
            fields.push(quote!(workers: ::core::option::Option::Some(#number)));
        }
        (Flavor::MultiThread, None) => {}
    }
    if arguments.starts_paused {
        // The package's own tokio must have the feature `test-util`, as for `#[tokio::test]`.
        fields.push(quote!(pause: ::core::option::Option::Some(::tokio::time::pause)));
    }
    Ok(quote!(::db_testkit::__private::Plan { #(#fields,)* ..::db_testkit::__private::Plan::DEFAULT }))
}

/// Relative to the package, whatever the working folder is.
fn in_package(path: &LitStr) -> impl ToTokens + use<> {
    quote!(::core::concat!(::core::env!("CARGO_MANIFEST_DIR"), "/", #path))
}

fn check(function: &ItemFn) -> syn::Result<()> {
    let signature = &function.sig;
    if signature.asyncness.is_none() {
        return Err(syn::Error::new_spanned(signature.fn_token, "a test with a database is an `async fn`"));
    }
    if !signature.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&signature.generics, "a test has no generic parameters"));
    }
    let is_method = matches!(signature.inputs.first(), Some(FnArg::Receiver(_)));
    if is_method || signature.inputs.is_empty() {
        let complaint = "a test with a database has a parameter for each: `db: TestDb`";
        return Err(syn::Error::new_spanned(&signature.ident, complaint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_is_async_and_takes_databases() {
        for (text, complaint) in [
            ("fn t(db: TestDb) {}", "`async fn`"),
            ("async fn t() {}", "a parameter for each"),
            ("async fn t(self) {}", "a parameter for each"),
            ("async fn t<T>(db: T) {}", "no generic parameters"),
        ] {
            let error = check(&syn::parse_str(text).unwrap()).unwrap_err().to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
        for text in ["async fn t(db: TestDb) -> Result<(), E> {}", "async fn t(a: TestDb, b: TestDb) {}"] {
            assert!(check(&syn::parse_str(text).unwrap()).is_ok(), "{text}");
        }
    }
}
