//! `buildwatch config`.

use std::fmt::Write;

use db_layer::{Setting, SettingSource};
use serde_json::json;

use crate::cli::{ConfigArgs, Site};
use crate::terminal::{json_line, print_out, shown};

pub(crate) fn command(site: &Site, args: &ConfigArgs) -> anyhow::Result<u8> {
    let mut text = String::new();
    for (setting, value, source) in site.settings.effective() {
        let said = said_by(site, setting, source);
        if args.json {
            let line = json!({ "name": setting.name, "value": value, "source": said });
            writeln!(text, "{}", json_line(&line)?)?;
        } else {
            let value = value.as_deref().map_or_else(|| "-".to_owned(), shown);
            writeln!(text, "{:<32}{value:<24}{said}", setting.name)?;
        }
    }
    print_out(&text)?;

    // The settings that were just shown may still be wrong.
    if site.settings.has_database() {
        let database = site.settings.options()?.database;
        eprintln!("buildwatch: the database is {database}");
    } else {
        site.settings.check_without_database()?;
        eprintln!("buildwatch: the database is on an embedded server in the data folder");
    }
    Ok(0)
}

fn said_by(site: &Site, setting: &Setting, source: SettingSource) -> String {
    match source {
        SettingSource::Flag | SettingSource::Environment => site.settings.known_as(setting),
        SettingSource::Program => "buildwatch".to_owned(),
        SettingSource::Default => "default".to_owned(),
    }
}
