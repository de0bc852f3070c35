//! The rules in the form of Prometheus.

use std::fmt::Write as _;

use super::{Rule, Unit, all};

/// The rules as a file for `rule_files` of Prometheus (2.42 or newer), over the metrics of the feature `metrics`. They look at the rates of a
/// minute, so the service must be scraped every 15 s or more often.
#[must_use]
pub fn prometheus() -> String {
    let mut file = "# Written by `cargo run -p db-layer --example alerts`, from the table that the service itself watches.\n\
                    # Rates are those of a minute: scrape the service every 15 s or more often.\n\
                    groups:\n  - name: db-layer\n    rules:\n"
        .to_owned();
    for rule in all() {
        let Rule { name, severity, what, action, expr, above, lasts, keeps, .. } = rule;
        let value = match rule.unit {
            Unit::Count => r#"{{ printf "%.0f" $value }}"#,
            Unit::Percent => r#"{{ printf "%.0f" $value }}%"#,
            Unit::Seconds => r#"{{ printf "%.2f" $value }} s"#,
        };
        let label = if rule.is_of_pools() { "db_client_connection_pool_name" } else { "namespace" };
        let summary = format!("{} ({{{{ $labels.{label} }}}})", what.replace("{}", value));
        let (lasts, keeps) = (lasts.as_secs(), keeps.as_secs());
        write!(
            file,
            "      - alert: {name}\n        expr: {}\n        for: {lasts}s\n        keep_firing_for: {keeps}s\n        \
             labels: {{severity: {}}}\n        annotations:\n          summary: {}\n          description: {}\n",
            quoted(&format!("{expr} > {above}")),
            severity.as_str(),
            quoted(&summary),
            quoted(action),
        )
        .expect("writing to a string");
    }
    file
}

/// A YAML scalar in single quotes, which has no escapes but the doubled quote.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
