//! Parses the arguments of the attribute.

use syn::parse::{Parse, ParseStream};
use syn::{Ident, LitStr, Token};

/// Either `migrations = "…"` or empty.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) migrations: Option<LitStr>,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Arguments> {
        let mut arguments = Arguments::default();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            if name != "migrations" {
                return Err(syn::Error::new(name.span(), "the only argument is `migrations = \"…\"`"));
            }
            if arguments.migrations.is_some() {
                return Err(syn::Error::new(name.span(), "`migrations` is given twice"));
            }
            input.parse::<Token![=]>()?;
            arguments.migrations = Some(input.parse()?);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        Ok(arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::Arguments;

    #[test]
    fn nothing_and_a_folder_are_understood() {
        let none: Arguments = syn::parse_str("").unwrap();
        let some: Arguments = syn::parse_str("migrations = \"../m\",").unwrap();

        assert!(none.migrations.is_none());
        assert_eq!(some.migrations.unwrap().value(), "../m");
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (text, complaint) in [
            ("migration = \"x\"", "the only argument is"),
            ("migrations = \"a\", migrations = \"b\"", "given twice"),
            ("migrations = 3", "expected string literal"),
        ] {
            let error = syn::parse_str::<Arguments>(text).err().expect("refused").to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
