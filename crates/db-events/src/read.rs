//! Reading a log, without waiting for more.

mod head;
mod history;
mod page;
mod seen;

pub use head::Head;
pub use history::{History, Selection};
pub(crate) use page::{Continuity, PAGE_BYTES, Page, WHAT, Wanted};
pub use page::{Events, IntoIter};
pub(crate) use seen::Seen;
