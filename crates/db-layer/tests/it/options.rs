//! `docs/options.md` agrees with the code.

use std::fmt::{Debug, Write};
use std::time::Duration;

use db_layer::db_events::EventOptions;
use db_layer::db_notify::BusOptions;
use db_layer::{ConnectRetry, KeyOptions, PoolOptions, Settings};

fn page() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/options.md");
    std::fs::read_to_string(path).expect("the page")
}

/// The rows of the table below a heading, without the header row.
fn rows(heading: &str) -> Vec<Vec<String>> {
    let page = page();
    let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect(heading);
    let section = section.split("\n## ").next().unwrap_or_default();
    let lines = section.lines().filter(|line| line.starts_with('|')).skip(2);
    lines
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect()
}

/// The names and values of a struct's fields, as `Debug` prints them.
fn fields(of: &impl Debug) -> Vec<(String, String)> {
    let shown = format!("{of:#?}");
    let lines = shown.lines().filter(|line| line.starts_with("    ") && !line.starts_with("     "));
    let pairs = lines.filter_map(|line| line.trim().trim_end_matches(',').split_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

/// A cell's value, as `Debug` prints it.
fn as_debug(cell: &str) -> String {
    let cell = cell.trim_matches('`');
    let time = cell.split_once(' ').and_then(|(number, unit)| {
        let number: u64 = number.parse().ok()?;
        Some(match unit {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "min" => Duration::from_mins(number),
            _ => return None,
        })
    });
    match time {
        Some(time) => format!("{time:?}"),
        None if cell == "none" => "None".to_owned(),
        None => cell.to_owned(),
    }
}

/// Compares the cells of one column with a struct's fields, in both directions.
fn compare(heading: &str, column: usize, of: &impl Debug) {
    let said: Vec<(String, String)> = rows(heading)
        .into_iter()
        .map(|row| {
            assert!(!row[row.len() - 1].is_empty(), "when to change it: {row:?}");
            (row[0].trim_matches('`').to_owned(), as_debug(&row[column]))
        })
        .collect();

    assert_eq!(said, fields(of), "{heading}, column {column}");
}

#[test]
fn the_page_has_each_option_of_a_pool_with_its_defaults() {
    compare("Options of a pool", 1, &PoolOptions::api());
    compare("Options of a pool", 2, &PoolOptions::backend());
}

#[test]
fn the_page_has_each_option_of_the_bus_with_its_default() {
    compare("Options of the bus", 1, &BusOptions::default());
}

#[test]
fn the_page_has_each_option_of_event_logs_with_its_default() {
    compare("Options of event logs", 1, &EventOptions::default());
}

#[test]
fn the_page_has_each_option_of_encryption_keys_with_its_default() {
    compare("Options of encryption keys", 1, &KeyOptions::default());
}

#[cfg(feature = "redis")]
#[test]
fn the_page_has_each_option_of_redis_with_its_default() {
    let config = db_layer::redis::RedisConfig::from_url("redis://cache").expect("an address");
    let shown = format!("{config:#?}").replace("    address: redis://cache:6379/0,\n", "");
    for row in rows("Options of Redis") {
        let line = format!("    {}: {},\n", row[0].trim_matches('`'), as_debug(&row[1]));
        assert!(shown.contains(&line), "{line} in {shown}");
    }
    assert_eq!(shown.matches("\n    ").count(), rows("Options of Redis").len(), "{shown}");
}

#[test]
fn the_page_has_each_option_of_waiting_with_its_default() {
    compare("Waiting for the server", 1, &ConnectRetry::default());
}

/// The table between the marks must equal the one made here.
#[cfg(feature = "redis")]
#[test]
fn the_page_lists_every_setting() {
    let mut table =
        String::from("| flag, environment | default | what it is | when to change it |\n|---|---|---|---|\n");
    for (setting, ..) in Settings::default().effective() {
        let default = setting.default.map_or_else(|| "–".to_owned(), |default| format!("`{default}`"));
        assert!(!setting.change.is_empty() && !setting.help.is_empty(), "{}", setting.name);
        writeln!(
            table,
            "| `--{}` {}, `{}` | {default} | {} | {} |",
            setting.name,
            setting.value,
            setting.variable(),
            setting.help,
            setting.change,
        )
        .expect("written");
    }
    let page = page();

    let said = page
        .split_once("<!-- settings -->\n")
        .and_then(|(_, rest)| rest.split_once("<!-- end of settings -->"))
        .map(|(said, _)| said.trim());

    assert_eq!(said, Some(table.trim()), "docs/options.md needs this table between its marks:\n{table}");
}
