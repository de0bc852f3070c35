//! Writes the public API of each library to `dev/api/`, and prints the difference.

use std::fs;

use anyhow::Context;

fn main() -> anyhow::Result<()> {
    for (library, api) in api::current()? {
        let file = api::committed(library);
        let before = fs::read_to_string(&file).unwrap_or_default();
        if before != api {
            print!("{library}\n{}", api::difference(&before, &api));
            fs::write(&file, api).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}
