//! The tables of the crates.

use std::path::Path;

use db_layer::{db_core, db_events, db_migrate};

#[test]
fn the_workspaces_migrations_are_copies_of_the_crates() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let schemas = db_events::SCHEMA.iter().chain(db_core::encryption::SCHEMA).chain(db_migrate::SCHEMA);
    for schema in schemas {
        for (suffix, text) in [("up", schema.up), ("down", schema.down)] {
            let ending = format!("_{}.{suffix}.sql", schema.name);
            let file = std::fs::read_dir(&folder)
                .expect("migrations")
                .map(|entry| entry.expect("an entry").path())
                .find(|path| path.to_string_lossy().ends_with(&ending))
                .unwrap_or_else(|| panic!("no file ends in {ending}"));
            assert_eq!(std::fs::read_to_string(&file).expect("text"), text, "{}", file.display());
        }
    }
}
