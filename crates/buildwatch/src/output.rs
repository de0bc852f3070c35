//! The events of a build.
//!
//! | kind | data |
//! |---|---|
//! | `stdout`, `stderr` | `{"text": "…"}`, a line; with `"newline": false`, a piece without a line end |
//! | | `{"base64": "…"}` instead of `text` where the bytes are not UTF-8 |
//! | `end` | `{"status": "succeeded" \| "failed" \| "aborted", "exit_code": 0, "message": "…"}`, the last event |
//!
//! All pieces together are the command's output, byte for byte.

mod end;
mod piece;
mod splitter;

pub(crate) use end::End;
pub(crate) use piece::Piece;
pub(crate) use splitter::Splitter;

/// The kind of a piece of standard output.
pub(crate) const STDOUT: &str = "stdout";
/// The kind of a piece of standard error.
pub(crate) const STDERR: &str = "stderr";
/// The kind of the last event.
pub(crate) const END: &str = "end";
