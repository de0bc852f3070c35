//! Following a log: streams that catch up by pages, and one reader for all streams that are at the end of a log.

mod fanout;
mod page_reads;
mod reader;
mod registry;
mod stream;

pub use page_reads::EventOptions;
pub(crate) use reader::Reader;
pub(crate) use registry::{PollerGuard, Registry, run_poller};
pub use stream::EventStream;
