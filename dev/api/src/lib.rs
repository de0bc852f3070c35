//! The public API of each library as text: one line for each item, sorted.
//!
//! `dev/api/NAME.txt` holds the committed API. A test compares it with the code, and this crate's program (`just api`) writes
//! it anew.
//!
//! The lines are made from rustdoc's JSON, whose format changes with the compiler, so `public-api` is pinned to a version that
//! reads our compiler's format.

use std::collections::BTreeSet;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The libraries with a public API.
pub const LIBRARIES: [&str; 8] =
    ["db-core", "db-notify", "db-events", "db-migrate", "db-layer", "db-axum", "db-embedded", "db-testkit"];

/// The file of a library's committed API.
#[must_use]
pub fn committed(library: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(library).with_extension("txt")
}

/// The current API of each library, with all its features.
///
/// # Errors
///
/// If a library does not compile, or rustdoc writes a format that `public-api` cannot read.
pub fn current() -> anyhow::Result<Vec<(&'static str, String)>> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let documented = Command::new(env!("CARGO"))
        .current_dir(&workspace)
        .env("RUSTDOC", Path::new(env!("CARGO_MANIFEST_DIR")).join("rustdoc"))
        .env("RUSTDOCFLAGS", "-Z unstable-options --output-format json")
        .args(["doc", "--quiet", "--no-deps", "--lib", "--all-features"])
        .args(LIBRARIES.iter().flat_map(|library| ["--package", library]))
        .status()
        .context("cannot start cargo")?;
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
                .with_context(|| format!("cannot read {}", json.display()))?;
            Ok((library, api.to_string()))
        })
        .collect()
}

/// The removed lines, each after `-`, and the new ones, each after `+`.
#[must_use]
pub fn difference(before: &str, after: &str) -> String {
    let (old, new): (BTreeSet<&str>, BTreeSet<&str>) = (before.lines().collect(), after.lines().collect());
    let mut lines: Vec<(&str, char)> = old.difference(&new).map(|line| (*line, '-')).collect();
    lines.extend(new.difference(&old).map(|line| (*line, '+')));
    lines.sort_unstable();
    lines.into_iter().flat_map(|(line, sign)| [sign.to_string(), format!(" {line}\n")]).collect()
}
