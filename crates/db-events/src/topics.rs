//! The topics on which the growth of a log is notified.

use db_notify::{NameError, Topic, WatchOptions};

use crate::LogId;

/// The topics that wake the followers of logs: by default `log/` and the log's number, and `log/watched`. All processes on a
/// database must use the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogTopics {
    prefix: String,
    pub(crate) watched: Topic,
    pub(crate) options: WatchOptions,
}

impl LogTopics {
    /// Topics that consist of `prefix` and a log's number. On the topic `watched`, processes tell each other which logs they
    /// follow.
    ///
    /// # Errors
    ///
    /// If the topic of some log would be too long, or contain a NUL.
    pub fn new(prefix: impl Into<String>, watched: Topic) -> Result<Self, NameError> {
        let topics = Self { prefix: prefix.into(), watched, options: WatchOptions::default() };
        // No number is longer.
        topics.checked(LogId(i64::MIN))?;
        Ok(topics)
    }

    /// Sets the options of the map of watched logs.
    #[must_use]
    pub fn options(self, options: WatchOptions) -> Self {
        Self { options, ..self }
    }

    fn checked(&self, log: LogId) -> Result<Topic, NameError> {
        Topic::new(format!("{}{log}", self.prefix))
    }

    /// The topic on which appends to a log are notified.
    pub(crate) fn of(&self, log: LogId) -> Topic {
        self.checked(log).expect("the longest topic was checked")
    }
}

impl Default for LogTopics {
    fn default() -> Self {
        let watched = Topic::new("log/watched").expect("a short text without NUL");
        Self { prefix: "log/".to_owned(), watched, options: WatchOptions::default() }
    }
}
