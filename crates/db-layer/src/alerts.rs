//! What somebody has to look at: one table of rules, for the log, for [`Db::alerts`](crate::Db::alerts), and for Prometheus.
//!
//! ```
//! # db_testkit::run(async |test| {
//! # let config = db_layer::Config::from_url(&test.url())?;
//! let db = db_layer::open(db_layer::Options::new(config)).await?;
//! for alert in db.alerts() {
//!     // WARNING: Database connection pool at 90% utilization (api)
//!     println!("{alert}; {}", alert.rule.action);
//! }
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```
//!
//! A rule reads one number, for each pool or for the database. Its alert is raised when the number has been above the rule's limit for
//! [`lasts`](Rule::lasts), and cleared when it has not been for [`keeps`](Rule::keeps), so that a number that goes up and down around the
//! limit is one alert. [`prometheus`] writes the same rules, with `for` and `keep_firing_for`, over the metrics of the feature `metrics`.

mod prometheus;
pub(crate) mod readings;
mod rules;
mod watch;

use std::fmt;
use std::time::{Duration, SystemTime};

pub use self::prometheus::prometheus;
use self::readings::{PoolReading, Readings};
pub use self::rules::all;
pub(crate) use self::watch::{Change, Watch};

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Severity {
    /// Work goes on. Somebody should look at it today.
    Warning,
    /// Requests fail, or will soon. Somebody should look at it now.
    Critical,
}

impl Severity {
    /// `warning` or `critical`, as Prometheus's rules have it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// The unit of a rule's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// A number of things.
    Count,
    /// A share of 100.
    Percent,
    /// Seconds.
    Seconds,
}

/// What is looked at, and when somebody has to.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Rule {
    /// Its name, here and in Prometheus: `PoolUtilization`.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What has happened, with `{}` for the number.
    pub what: &'static str,
    /// What to do.
    pub action: &'static str,
    /// The number in Prometheus's language.
    pub expr: &'static str,
    /// The unit of the number.
    pub unit: Unit,
    /// The limit that the number must be above.
    pub above: f64,
    /// For how long, before the alert is raised.
    pub lasts: Duration,
    /// How long it must not be above the limit, before the alert is cleared.
    pub keeps: Duration,
    read: Read,
}

/// How a rule finds its number. `None` while it is not known, which is not above the limit.
#[derive(Debug, Clone, Copy)]
enum Read {
    Pool(fn(&PoolReading) -> Option<f64>),
    Database(fn(&Readings) -> Option<f64>),
}

impl Unit {
    /// The sign of the unit: none, `%` or `s`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Count => "",
            Self::Percent => "%",
            Self::Seconds => "s",
        }
    }
}

impl Rule {
    /// Whether the rule has a number for each pool, or one for the database.
    #[must_use]
    pub const fn is_of_pools(&self) -> bool {
        matches!(self.read, Read::Pool(_))
    }

    fn shown(&self, value: f64) -> String {
        match self.unit {
            Unit::Count => format!("{value:.0}"),
            Unit::Percent => format!("{value:.0}%"),
            Unit::Seconds => format!("{value:.2} s"),
        }
    }
}

/// An alert that is raised.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Alert {
    /// The rule.
    pub rule: &'static Rule,
    /// The pool, of a rule that has a number for each.
    pub pool: Option<String>,
    /// The number when it was last above the limit.
    pub value: f64,
    /// Since when it is raised.
    pub since: SystemTime,
}

impl fmt::Display for Alert {
    /// `WARNING: Database connection pool at 85% utilization (api)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, pool, value, .. } = self;
        let severity = rule.severity.as_str().to_uppercase();
        write!(f, "{severity}: {}", rule.what.replace("{}", &rule.shown(*value)))?;
        match pool {
            // A line of the log stays one line.
            Some(pool) => write!(f, " ({})", pool.escape_debug()),
            None => Ok(()),
        }
    }
}
