//! The public API of each library as text: one line for each item, sorted.
//!
//! `dev/api/NAME.txt` holds what was agreed on. A test compares that with the code, and the program of this crate (`just api`) writes it
//! anew.
//!
//! The lines are made from rustdoc's JSON, whose form changes with the compiler, so `public-api` is pinned to a version that reads
//! what our compiler writes.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// What somebody may depend on.
pub const LIBRARIES: [&str; 8] =
    ["db-core", "db-notify", "db-events", "db-migrate", "db-layer", "db-axum", "db-embedded", "db-testkit"];

/// Where the agreed API of a library is.
#[must_use]
pub fn committed(library: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(library).with_extension("txt")
}

/// The API that each library has now, with all of its features.
///
/// # Errors
///
/// When a library does not compile, or rustdoc writes a form that is not read here.
pub fn current() -> anyhow::Result<Vec<(&'static str, String)>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let documented = Command::new(env!("CARGO"))
        .current_dir(&workspace)
        .env("RUSTDOC", Path::new(env!("CARGO_MANIFEST_DIR")).join("rustdoc"))
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .args(["doc", "--quiet", "--no-deps", "--lib", "--all-features"])
        .args(LIBRARIES.iter().flat_map(|library| ["--package", library]))
        .status()
        .context("cargo does not start")?;
    ensure!(documented.success(), "rustdoc ended with {documented}");

    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from);
    LIBRARIES
        .into_iter()
        .map(|library| {
            let json = target.join("doc").join(library.replace('-', "_")).with_extension("json");
            let api = public_api::Builder::from_rustdoc_json(&json)
                .omit_auto_derived_impls(true)
                .omit_auto_trait_impls(true)
                .omit_blanket_impls(true)
                .build()
                .with_context(|| format!("{} is not read", json.display()))?;
            Ok((library, api.to_string()))
        })
        .collect()
}

/// The lines that are gone, each after `-`, and those that are new, each after `+`.
#[must_use]
pub fn difference(before: &str, after: &str) -> String {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let mut lines: Vec<(&str, char)> = old.difference(&new).map(|line| (*line, '-')).collect();
    lines.extend(new.difference(&old).map(|line| (*line, '+')));
    lines.sort_unstable();
    lines.into_iter().flat_map(|(line, sign)| [sign.to_string(), format!(" {line}\n")]).collect()
}
