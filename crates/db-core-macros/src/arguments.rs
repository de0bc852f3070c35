//! Reads `#[sealed(key = "…", plain = "…", derive(…), crate = "…")]`.

use syn::meta::ParseNestedMeta;
use syn::punctuated::Punctuated;
use syn::{Attribute, Ident, LitStr, Path, Token, parenthesized};

const WHICH: &str = "the arguments are `key = \"…\"`, `plain = \"…\"`, `derive(…)` and `crate = \"…\"`";

pub(crate) struct Arguments {
    /// The fields of the row's key, in the order of the declaration.
    pub(crate) key: Vec<Ident>,
    /// The name of the struct of plain values.
    pub(crate) plain: Option<Ident>,
    /// What that struct derives.
    pub(crate) derive: Vec<Path>,
    /// The crate that has the module `encryption`.
    pub(crate) library: Option<Path>,
}

impl Arguments {
    pub(crate) fn of(attributes: &[Attribute], of: &Ident) -> syn::Result<Arguments> {
        let mut arguments = Arguments { key: Vec::new(), plain: None, derive: Vec::new(), library: None };
        for attribute in attributes.iter().filter(|it| it.path().is_ident("sealed")) {
            attribute.parse_nested_meta(|meta| arguments.read(&meta))?;
        }
        if arguments.key.is_empty() {
            return Err(syn::Error::new(
                of.span(),
                "name the field of the row's key: `#[sealed(key = \"id\")]`",
            ));
        }
        Ok(arguments)
    }

    fn read(&mut self, meta: &ParseNestedMeta<'_>) -> syn::Result<()> {
        if meta.path.is_ident("key") {
            let names = text(meta)?.parse_with(Punctuated::<Ident, Token![,]>::parse_terminated)?;
            self.key = names.into_iter().collect();
        } else if meta.path.is_ident("plain") {
            self.plain = Some(text(meta)?.parse()?);
        } else if meta.path.is_ident("crate") {
            self.library = Some(text(meta)?.parse()?);
        } else if meta.path.is_ident("derive") {
            let content;
            parenthesized!(content in meta.input);
            self.derive.extend(Punctuated::<Path, Token![,]>::parse_terminated(&content)?);
        } else {
            return Err(meta.error(WHICH));
        }
        Ok(())
    }
}

fn text(meta: &ParseNestedMeta<'_>) -> syn::Result<LitStr> {
    meta.value()?.parse()
}

#[cfg(test)]
mod tests {
    use syn::{DeriveInput, parse_str};

    use super::*;

    fn of(text: &str) -> syn::Result<Arguments> {
        let item: DeriveInput = parse_str(&format!("{text} struct Row {{}}")).unwrap();
        Arguments::of(&item.attrs, &item.ident)
    }

    #[test]
    fn all_arguments_are_understood() {
        let all = of(
            "#[sealed(key = \"tenant, nr\", plain = \"Order\")] #[sealed(derive(Clone, a::B), crate = \"db_layer\")]",
        );
        let Arguments { key, plain, derive, library } = all.unwrap();

        assert_eq!((key.len(), derive.len()), (2, 2));
        assert!(key[1] == "nr" && plain.unwrap() == "Order" && library.unwrap().is_ident("db_layer"));
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (text, complaint) in [
            ("", "name the field of the row's key"),
            ("#[sealed(plain = \"Order\")]", "name the field of the row's key"),
            ("#[sealed(keys = \"id\")]", "the arguments are `key"),
            ("#[sealed(key = 1)]", "expected string literal"),
            ("#[sealed(key = \"a b\")]", "expected `,`"),
        ] {
            let error = of(text).err().expect("refused").to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
