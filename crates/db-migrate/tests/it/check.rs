//! Trying migrations on a server of their own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use db_migrate::Migrations;
use db_migrate::check::{Check, Checked, CheckedFile, Mode, Rule, WayBack};

use crate::{folder, migrations};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/check")
}

fn sql_of(name: &str) -> String {
    fs::read_to_string(data().join(name)).expect("a file")
}

/// The files of a folder beside the base schema, by name.
fn files(kind: &str) -> BTreeMap<String, String> {
    let entries = fs::read_dir(data().join(kind)).expect("listed");
    let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
    names.map(|name| (name.clone(), sql_of(&format!("{kind}/{name}")))).collect()
}

/// Checks files one after the other, each on the base schema. One that fails ends a check, so it goes on with the next.
async fn each_on_the_base(files: &BTreeMap<String, String>) -> BTreeMap<String, CheckedFile> {
    let base = sql_of("base.sql");
    let mut left: Vec<&String> = files.keys().collect();
    let mut checked = BTreeMap::new();
    while !left.is_empty() {
        let dir = folder(&[("1_base.sql", &base)]);
        for (nth, name) in left.iter().enumerate() {
            let version = 2 * nth + 2;
            fs::write(dir.path().join(format!("{version}_file.sql")), &files[*name]).expect("written");
            // As one statement, since each is looked at.
            let again = format!("do $do$ begin execute $again${AWAY}{base}$again$; end $do$");
            fs::write(dir.path().join(format!("{}_base.sql", version + 1)), again).expect("written");
        }
        let migrations = Migrations::from_dir(dir.path()).await.expect("migrations");
        let seen = Check::new(&migrations).run().await.expect("checked");
        let of_files: Vec<_> = seen.files.into_iter().filter(|file| file.version % 2 == 0).collect();
        assert!(!of_files.is_empty(), "the base fails");
        let names = left.drain(..of_files.len()).cloned();
        checked.extend(names.zip(of_files));
    }
    checked
}

/// Removes all that a user has made, and leaves the migration tables.
const AWAY: &str = "
do $away$ declare it record; begin
  for it in select nspname from pg_namespace where nspname not like 'pg\\_%' and nspname not in ('information_schema', 'public') loop
    execute format('drop schema %I cascade', it.nspname);
  end loop;
  for it in select c.oid::regclass as name, relkind from pg_class as c where relnamespace = 'public'::regnamespace and relkind in ('v', 'm') loop
    execute format('drop %s if exists %s cascade', case it.relkind when 'v' then 'view' else 'materialized view' end, it.name);
  end loop;
  for it in select c.oid::regclass as name from pg_class as c where relnamespace = 'public'::regnamespace and relkind in ('r', 'p')
            and relname not like '\\_sqlx%' and not relispartition loop
    execute format('drop table if exists %s cascade', it.name);
  end loop;
  for it in select oid::regprocedure as name, prokind from pg_proc where pronamespace = 'public'::regnamespace loop
    execute format('drop routine if exists %s cascade', it.name);
  end loop;
  for it in select t.oid::regtype as name from pg_type as t where typnamespace = 'public'::regnamespace and typtype in ('e', 'd') loop
    execute format('drop type if exists %s cascade', it.name);
  end loop;
  for it in select c.oid::regclass as name from pg_class as c where relnamespace = 'public'::regnamespace and relkind = 'S' loop
    execute format('drop sequence if exists %s cascade', it.name);
  end loop;
end $away$;
";

#[tokio::test]
async fn what_hurts_a_running_service_is_found() {
    let unsafe_files = files("unsafe");
    let checked = each_on_the_base(&unsafe_files).await;
    for (name, file) in &checked {
        println!("{name}");
        for finding in &file.findings {
            println!("    {finding}");
        }
    }
    panic!("see");
}

#[tokio::test]
async fn the_right_ways_are_left_alone() {
    let checked = each_on_the_base(&files("safe")).await;
    for (name, file) in checked.iter().filter(|(_, file)| !file.findings.is_empty()) {
        println!("{name}");
        for finding in &file.findings {
            println!("    {finding}");
        }
    }
    panic!("see");
}
