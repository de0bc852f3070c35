//! Parses the arguments of the attribute.

use syn::parse::{Parse, ParseStream};
use syn::punctuated::Punctuated;
use syn::token::Bracket;
use syn::{Error, Ident, LitBool, LitInt, LitStr, Token, bracketed};

const NAMES: &str =
    "`migrations`, `fixtures`, `server`, `leaves`, `strict`, `flavor`, `worker_threads` and `start_paused`";

/// What stands in the attribute's parentheses.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) migrations: Option<LitStr>,
    pub(crate) fixtures: Vec<LitStr>,
    pub(crate) is_throwaway: bool,
    pub(crate) leaves: Vec<LitStr>,
    pub(crate) is_strict: bool,
    pub(crate) flavor: Flavor,
    pub(crate) worker_threads: Option<LitInt>,
    pub(crate) starts_paused: bool,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Flavor {
    CurrentThread,
    #[default]
    MultiThread,
}

impl Parse for Arguments {
    fn parse(input: ParseStream<'_>) -> syn::Result<Arguments> {
        let mut arguments = Arguments::default();
        let mut given: Vec<Ident> = Vec::new();
        while !input.is_empty() {
            let name: Ident = input.parse()?;
            if given.contains(&name) {
                return Err(Error::new(name.span(), format!("`{name}` is given twice")));
            }
            arguments.take(&name, input)?;
            given.push(name);
            if !input.is_empty() {
                input.parse::<Token![,]>()?;
            }
        }
        arguments.check(&given)?;
        Ok(arguments)
    }
}

impl Arguments {
    /// Takes what stands behind a name.
    fn take(&mut self, name: &Ident, input: ParseStream<'_>) -> syn::Result<()> {
        match name.to_string().as_str() {
            "strict" => self.is_strict = true,
            "migrations" => self.migrations = Some(value(input)?),
            "fixtures" => self.fixtures = one_or_several(input)?,
            "leaves" => self.leaves = one_or_several(input)?,
            "server" => self.is_throwaway = one_of(input, &[("throwaway", true)])?,
            "flavor" => {
                let flavors =
                    [("current_thread", Flavor::CurrentThread), ("multi_thread", Flavor::MultiThread)];
                self.flavor = one_of(input, &flavors)?;
            }
            "worker_threads" => self.worker_threads = Some(at_least_one(input)?),
            "start_paused" => self.starts_paused = value::<LitBool>(input)?.value,
            _ => {
                return Err(Error::new(
                    name.span(),
                    format!("no argument `{name}`; the arguments are {NAMES}"),
                ));
            }
        }
        Ok(())
    }

    /// As `#[tokio::test]` does. The names are there to point at.
    fn check(&self, given: &[Ident]) -> syn::Result<()> {
        let (refused, flavor) = match self.flavor {
            Flavor::CurrentThread if self.worker_threads.is_some() => ("worker_threads", "multi_thread"),
            Flavor::MultiThread if self.starts_paused => ("start_paused", "current_thread"),
            _ => return Ok(()),
        };
        match given.iter().find(|it| *it == refused) {
            Some(name) => Err(Error::new(name.span(), format!("`{name}` needs `flavor = \"{flavor}\"`"))),
            None => Ok(()),
        }
    }
}

/// `= …`.
fn value<T: Parse>(input: ParseStream<'_>) -> syn::Result<T> {
    input.parse::<Token![=]>()?;
    input.parse()
}

/// `= "…"`, or `= ["…", "…"]`. An empty text would name everything.
fn one_or_several(input: ParseStream<'_>) -> syn::Result<Vec<LitStr>> {
    input.parse::<Token![=]>()?;
    let all: Vec<LitStr> = if input.peek(Bracket) {
        let list;
        bracketed!(list in input);
        Punctuated::<LitStr, Token![,]>::parse_terminated(&list)?.into_iter().collect()
    } else {
        vec![input.parse()?]
    };
    match all.iter().find(|it| it.value().is_empty()) {
        Some(empty) => Err(Error::new(empty.span(), "this text is empty")),
        None => Ok(all),
    }
}

fn one_of<T: Copy>(input: ParseStream<'_>, values: &[(&str, T)]) -> syn::Result<T> {
    let given: LitStr = value(input)?;
    let found = values.iter().find(|(name, _)| *name == given.value());
    found.map(|(_, value)| *value).ok_or_else(|| {
        let names: Vec<String> = values.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let is = if names.len() == 1 { "value is" } else { "values are" };
        Error::new(given.span(), format!("the only {is} {}", names.join(" and ")))
    })
}

fn at_least_one(input: ParseStream<'_>) -> syn::Result<LitInt> {
    let number: LitInt = value(input)?;
    if number.base10_parse::<usize>()? == 0 {
        return Err(Error::new(number.span(), "`worker_threads` is at least 1"));
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Flavor};

    fn values(literals: &[syn::LitStr]) -> Vec<String> {
        literals.iter().map(syn::LitStr::value).collect()
    }

    #[test]
    fn each_argument_is_understood() {
        let none: Arguments = syn::parse_str("").unwrap();
        let all: Arguments = syn::parse_str(
            "migrations = \"../m\", fixtures = [\"a.sql\", \"b.sql\"], server = \"throwaway\", leaves = \"x\", strict, \
             flavor = \"current_thread\", start_paused = true,",
        )
        .unwrap();
        let workers: Arguments = syn::parse_str("worker_threads = 4, flavor = \"multi_thread\"").unwrap();

        assert!(none.migrations.is_none() && none.fixtures.is_empty() && none.leaves.is_empty());
        assert!(!none.is_throwaway && !none.is_strict && !none.starts_paused);
        assert!(none.flavor == Flavor::MultiThread && none.worker_threads.is_none());
        assert_eq!(all.migrations.unwrap().value(), "../m");
        assert_eq!(values(&all.fixtures), ["a.sql", "b.sql"]);
        assert_eq!(values(&all.leaves), ["x"]);
        assert!(all.is_throwaway && all.is_strict && all.starts_paused);
        assert!(all.flavor == Flavor::CurrentThread);
        assert_eq!(workers.worker_threads.unwrap().base10_digits(), "4");
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        for (text, complaint) in [
            (
                "migration = \"x\"",
                "no argument `migration`; the arguments are `migrations`, `fixtures`, `server`, `leaves`",
            ),
            ("and", "no argument `and`"),
            ("migrations = \"a\", migrations = \"b\"", "`migrations` is given twice"),
            ("strict, strict", "`strict` is given twice"),
            ("migrations = 3", "expected string literal"),
            ("fixtures = [\"a\", 3]", "expected string literal"),
            ("leaves = \"\"", "this text is empty"),
            ("server = \"shared\"", "the only value is \"throwaway\""),
            ("flavor = \"single\"", "the only values are \"current_thread\" and \"multi_thread\""),
            ("worker_threads = 0", "`worker_threads` is at least 1"),
            (
                "worker_threads = 2, flavor = \"current_thread\"",
                "`worker_threads` needs `flavor = \"multi_thread\"`",
            ),
            ("start_paused = true", "`start_paused` needs `flavor = \"current_thread\"`"),
            ("start_paused = \"yes\"", "expected boolean literal"),
        ] {
            let error = syn::parse_str::<Arguments>(text).err().expect(text).to_string();
            assert!(error.contains(complaint), "{text}: {error}");
        }
    }
}
