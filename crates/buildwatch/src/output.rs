//! What a build's events hold.
//!
//! | type | data |
//! |---|---|
//! | `stdout`, `stderr` | `{"text": "…"}`, a line; with `"newline": false`, a piece that no line end followed yet |
//! | | `{"base64": "…"}` instead of `text` where the bytes are not UTF-8 |
//! | `end` | `{"status": "succeeded" \| "failed" \| "aborted", "exit_code": 0, "message": "…"}`, the last event |
//!
//! Put together, the pieces are the command's output, byte for byte.

mod end;
mod piece;
mod splitter;

pub(crate) use end::End;
pub(crate) use piece::Piece;
pub(crate) use splitter::Splitter;

/// The type of a piece of standard output.
pub(crate) const STDOUT: &str = "stdout";
/// The type of a piece of standard error.
pub(crate) const STDERR: &str = "stderr";
/// The type of the last event.
pub(crate) const END: &str = "end";
