//! Being asked to end.

use anyhow::Context;
use db_layer::{Signal, Signals};

/// Catches the signals that ask a program at a terminal to end, from now on: a service's two, and a terminal that closes,
/// and Ctrl-\.
pub(crate) fn catch() -> anyhow::Result<Signals> {
    let signals = [Signal::Terminate, Signal::Interrupt, Signal::Hangup, Signal::Quit];
    Signals::of(signals).context("cannot catch signals")
}
