//! The committed API is the code's.

use std::fs;

use api::{LIBRARIES, committed, current, difference};

#[test]
fn the_public_api_of_each_library_is_the_one_that_is_committed() {
    let mut changed = String::new();
    for (library, now) in current().expect("the libraries are documented") {
        let before = fs::read_to_string(committed(library)).unwrap_or_default();
        if before != now {
            changed.extend([library, "\n", &difference(&before, &now), "\n"]);
        }
    }
    assert!(
        changed.is_empty(),
        "the public API differs from dev/api/:\n\n{changed}\
         If this is meant, `just api` writes it anew, and CHANGELOG.md says what users have to change."
    );
}

#[test]
fn no_api_is_committed_of_what_is_no_library() {
    for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "txt") {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("a name");
            assert!(LIBRARIES.contains(&name), "{} is left over", path.display());
        }
    }
}

#[test]
fn a_changed_line_is_shown_as_it_was_and_as_it_is() {
    let shown = difference("pub fn a()\npub fn b()\n", "pub fn a()\npub fn b(x: u8)\n");

    assert_eq!(shown, "- pub fn b()\n+ pub fn b(x: u8)\n");
}
