//! The readers of followed logs: one for all streams that are at the end of a log.

mod fanout;
mod page_reads;
mod reader;
mod registry;

pub(crate) use fanout::{Follower, Next};
pub use page_reads::EventOptions;
pub(crate) use reader::{Reader, page};
pub(crate) use registry::{PollerGuard, Registry, run_poller};
