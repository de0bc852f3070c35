//! Reading a log, without waiting for more.

mod head;
mod page;
mod seen;

pub use head::Head;
pub(crate) use head::was_created;
pub(crate) use page::{Continuity, PAGE_BYTES, Page, WHAT, Wanted};
pub use page::{Events, IntoIter};
pub(crate) use seen::Seen;
