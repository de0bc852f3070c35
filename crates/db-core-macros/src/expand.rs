//! Writes the struct of the columns, that of the plain values, and the call that unseals.

use quote::{ToTokens, format_ident, quote};
use syn::{Data, DeriveInput, Field, Fields, GenericArgument, Ident, PathArguments, Type, parse_quote};

use crate::arguments::Arguments;

/// A field that is sealed.
struct Sealed<'a> {
    name: &'a Ident,
    /// The type of the plain value.
    value: &'a Type,
    /// Whether the field is `Option<Sealed<T>>`.
    is_optional: bool,
}

pub(crate) fn expand(item: &DeriveInput) -> syn::Result<impl ToTokens + use<>> {
    let row = &item.ident;
    let Arguments { key, plain, derive, library } = Arguments::of(&item.attrs, row)?;
    let fields = fields(item)?;
    for name in &key {
        if !fields.iter().any(|field| field.ident.as_ref() == Some(name)) {
            return Err(syn::Error::new(
                name.span(),
                format!("the struct has no field `{name}` for the key"),
            ));
        }
    }
    let sealed: Vec<Sealed<'_>> = fields.iter().copied().filter_map(of_field).collect();
    if sealed.is_empty() {
        return Err(syn::Error::new(row.span(), "no field is a `Sealed<…>` or an `Option<Sealed<…>>`"));
    }

    let library = library.unwrap_or_else(|| parse_quote!(db_core));
    let module = quote!(::#library::encryption);
    let (vis, columns) = (&item.vis, format_ident!("{row}Columns"));
    let plain = plain.unwrap_or_else(|| format_ident!("{row}Plain"));
    let of_columns = format!("The sealed columns of [`{row}`].");
    let of_plain = format!("A [`{row}`] whose values are unsealed.");
    let derive = (!derive.is_empty()).then(|| quote!(#[derive(#(#derive),*)]));
    let (names, values): (Vec<_>, Vec<_>) = sealed.iter().map(|it| (it.name, it.value)).unzip();
    let key = if let [one] = &key[..] { quote!(&self.#one) } else { quote!((#(&self.#key),*)) };
    let unsealed = sealed.iter().map(|Sealed { name, is_optional, .. }| {
        let unseal = |sealed| quote!(columns.#name.unseal(#key, #sealed)?);
        if *is_optional {
            let one = unseal(quote!(sealed));
            quote!(let #name = match &self.#name {
                ::core::option::Option::Some(sealed) => ::core::option::Option::Some(#one),
                ::core::option::Option::None => ::core::option::Option::None,
            };)
        } else {
            let one = unseal(quote!(&self.#name));
            quote!(let #name = #one;)
        }
    });
    let kept = fields.iter().filter_map(|field| field.ident.as_ref()).filter(|name| !names.contains(name));
    let plain_fields = fields.iter().map(|field| {
        let (vis, name) = (&field.vis, &field.ident);
        let docs = field.attrs.iter().filter(|it| it.path().is_ident("doc"));
        let kind = match of_field(field) {
            None => field.ty.to_token_stream(),
            Some(Sealed { value, is_optional: false, .. }) => value.to_token_stream(),
            Some(Sealed { value, .. }) => quote!(::core::option::Option<#value>),
        };
        quote!(#(#docs)* #vis #name: #kind)
    });
    Ok(quote! {
        #[doc = #of_columns]
        #vis struct #columns {
            #(
                #[doc = "Seals and unseals the values of the field of this name."]
                #vis #names: #module::Column<#values>,
            )*
        }

        #[doc = #of_plain]
        #derive
        #vis struct #plain {
            #(#plain_fields,)*
        }

        impl #row {
            /// Unseals all sealed values of the row.
            ///
            /// # Errors
            ///
            /// That of the first value that does not unseal, with its table, column and row.
            #vis fn unseal(self, columns: &#columns) -> ::core::result::Result<#plain, #module::EncryptionError> {
                #(#unsealed)*
                ::core::result::Result::Ok(#plain { #(#kept: self.#kept,)* #(#names,)* })
            }
        }
    })
}

fn fields(item: &DeriveInput) -> syn::Result<Vec<&Field>> {
    if !item.generics.params.is_empty() {
        return Err(syn::Error::new_spanned(&item.generics, "a row has no generic parameters"));
    }
    match &item.data {
        Data::Struct(data) if matches!(data.fields, Fields::Named(_)) => Ok(data.fields.iter().collect()),
        _ => Err(syn::Error::new(item.ident.span(), "a row is a struct with named fields")),
    }
}

fn of_field(field: &Field) -> Option<Sealed<'_>> {
    let name = field.ident.as_ref()?;
    if let Some(value) = argument_of("Sealed", &field.ty) {
        return Some(Sealed { name, value, is_optional: false });
    }
    let value = argument_of("Sealed", argument_of("Option", &field.ty)?)?;
    Some(Sealed { name, value, is_optional: true })
}

/// `T` of `Name<T>`, whatever path leads to the name.
fn argument_of<'a>(name: &str, kind: &'a Type) -> Option<&'a Type> {
    let Type::Path(path) = kind else { return None };
    let last = path.path.segments.last().filter(|last| last.ident == name)?;
    let PathArguments::AngleBracketed(arguments) = &last.arguments else { return None };
    match arguments.args.first() {
        Some(GenericArgument::Type(kind)) if arguments.args.len() == 1 => Some(kind),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_a_struct_with_its_key_and_a_sealed_field() {
        for (text, complaint) in [
            ("enum Row { A }", "a struct with named fields"),
            ("struct Row(Sealed<String>);", "a struct with named fields"),
            ("struct Row<T> { id: T, iban: Sealed<String> }", "no generic parameters"),
            ("struct Row { nr: i64, iban: Sealed<String> }", "no field `id` for the key"),
            ("struct Row { id: i64, iban: Vec<u8> }", "no field is a `Sealed<…>`"),
            ("struct Row { id: i64, iban: Vec<Sealed<String>> }", "no field is a `Sealed<…>`"),
        ] {
            let item = syn::parse_str(&format!("#[sealed(key = \"id\")] {text}")).unwrap();
            let error = expand(&item).err().expect("refused").to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
        let row = "#[sealed(key = \"id\")] struct Row { id: i64, a: x::Sealed<u8>, b: Option<Sealed<u8>> }";
        assert!(expand(&syn::parse_str(row).unwrap()).is_ok());
    }
}
