//! What a pool writes to the log.

use std::collections::HashMap;
use std::fmt::{self, Debug, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, span};

/// One line of the log.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) message: String,
    pub(crate) fields: HashMap<&'static str, String>,
}

impl Line {
    /// All of it, where the test is that something is not in it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.message.clone();
        for (name, value) in &self.fields {
            write!(text, " {name}={value}").expect("writing to a string");
        }
        text
    }
}

/// The log of one pool, whichever thread writes to it: the pool's name tells it from those of other tests.
#[derive(Debug, Clone)]
pub(crate) struct Events(Arc<Mutex<Vec<Line>>>);

impl Events {
    /// Listens from now on to the pools of this name, which nobody else should have.
    pub(crate) fn of(pool: &str) -> Self {
        // A pool's tasks run on any thread, so a subscriber of one thread would miss them.
        static ALL: OnceLock<Ears> = OnceLock::new();
        let ears = ALL.get_or_init(|| {
            let ears = Ears::default();
            tracing::subscriber::set_global_default(ears.clone()).expect("nobody else listens");
            ears
        });
        let events = Self(Arc::default());
        assert!(ears.pools().insert(pool.to_owned(), events.clone()).is_none(), "`{pool}` has two listeners");
        events
    }

    pub(crate) fn all(&self) -> Vec<Line> {
        self.lines().clone()
    }

    /// The lines with this in the message.
    pub(crate) fn with(&self, part: &str) -> Vec<Line> {
        self.lines().iter().filter(|line| line.message.contains(part)).cloned().collect()
    }

    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears everything, and keeps what a test wants to know.
#[derive(Debug, Clone, Default)]
struct Ears(Arc<Mutex<HashMap<String, Events>>>);

impl Ears {
    fn pools(&self) -> MutexGuard<'_, HashMap<String, Events>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Ears {
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
