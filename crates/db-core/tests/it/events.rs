//! Captures a pool's log events.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// One log event.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: HashMap<&'static str, String>,
}

impl Line {
    /// The message with all fields, for tests that something is absent.
    pub(crate) fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            write!(text, " {name}={value}").expect("writing to a string");
        }
        text
    }
}

/// The log of one pool from all threads. The pool's name separates it from those of other tests.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Mutex<Vec<Line>>>);

impl Events {
    /// Captures the events of the pool with this name from now on. The name must be unique in the process.
    pub(crate) fn of(pool: &str) -> Self {
        // A pool's tasks run on any thread, so a thread-local subscriber would miss their events.
        static ALL: OnceLock<Capture> = OnceLock::new();
        let capture = ALL.get_or_init(|| {
            let capture = Capture::default();
            tracing::subscriber::set_global_default(capture.clone()).expect("the only subscriber");
            capture
        });
        let events = Self(Arc::default());
        assert!(
            capture.pools().insert(pool.to_owned(), events.clone()).is_none(),
            "`{pool}` is captured twice"
        );
        events
    }

    pub(crate) fn all(&self) -> Vec<Line> {
        self.lines().clone()
    }

    /// The events whose message contains `part`.
    pub(crate) fn with(&self, part: &str) -> Vec<Line> {
        self.lines().iter().filter(|line| line.message.contains(part)).cloned().collect()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Receives all events, and stores those of the registered pools.
#[derive(Debug, Clone, Default)]
struct Capture(Arc<Mutex<HashMap<String, Events>>>);

impl Capture {
    fn pools(&self) -> MutexGuard<'_, HashMap<String, Events>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        !metadata.is_span() && metadata.target().starts_with("db_core")
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Some(events) = fields.0.get("pool").and_then(|pool| self.pools().get(pool).cloned()) else {
            return;
        };
        let metadata = event.metadata();
        let message = fields.0.remove("message").unwrap_or_default();
        events.lines().push(Line {
            level: *metadata.level(),
            target: metadata.target().to_owned(),
            message,
            fields: fields.0,
        });
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

#[derive(Default)]
struct Fields(HashMap<&'static str, String>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), fmt::format(format_args!("{value:?}")));
    }
}
