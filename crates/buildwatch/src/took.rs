//! How long builds ran, for those that ended before this was stored.

use db_layer::db_migrate::batches::{Batches, Change, Row};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// The step of the migrations that does it.
pub(crate) const STEP: &str = "fill-took";

/// Fills `builds.took_ms` while others write.
pub(crate) fn fill() -> Batches {
    Batches::new("how long builds ran", "builds", change)
        .writes("took_ms")
        .reads("created_at")
        .reads("ended_at")
        .pending("took_ms is null and ended_at is not null")
}

fn change(row: &Row) -> Change {
    let (Some(created_at), Some(ended_at), None) = (row.text(1), row.text(2), row.text(0)) else {
        return Change::Unchanged;
    };
    match milliseconds(created_at, ended_at) {
        Ok(took) => Change::To(vec![Some(took.to_string().into_bytes())]),
        Err(error) => Change::Cannot(format!("its times cannot be read: {error}")),
    }
}

/// Between two times as PostgreSQL writes them (its manual, chapter 8.5.2 "Date/Time Output", style `ISO`).
fn milliseconds(from: &str, to: &str) -> Result<i128, time::error::Parse> {
    const FORM: &[BorrowedFormatItem<'_>] = format_description!(
        "[year]-[month]-[day] [hour]:[minute]:[second][optional [.[subsecond]]][offset_hour sign:mandatory][optional [:[offset_minute]]]"
    );
    let (from, to) = (OffsetDateTime::parse(from, FORM)?, OffsetDateTime::parse(to, FORM)?);
    Ok((to - from).whole_milliseconds())
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn times_are_read_as_the_server_writes_them() {
        for (from, to, expected) in [
            ("2026-11-29 08:00:00+00", "2026-11-29 08:00:01.5+00", 1500),
            ("2026-11-29 08:00:00.123456+00", "2026-11-30 08:00:00.123956+00", 86_400_000),
            ("2026-11-29 08:00:00+05:30", "2026-11-29 02:30:01+00", 1000),
            ("2026-11-29 08:00:00-03", "2026-11-29 12:00:00+01", 0),
        ] {
            assert_eq!(milliseconds(from, to).ok(), Some(expected), "{from}, {to}");
        }
        assert!(milliseconds("29/11/2026 08:00:00 UTC", "infinity").is_err());
    }
}
