//! Signals that ask the program to end.

use anyhow::Context;
use db_layer::{Signal, Signals};

/// Catches SIGTERM, SIGINT, SIGHUP (a closed terminal) and SIGQUIT (Ctrl-\) from now on.
pub(crate) fn catch() -> anyhow::Result<Signals> {
    let signals = [Signal::Terminate, Signal::Interrupt, Signal::Hangup, Signal::Quit];
    Signals::of(signals).context("cannot catch signals")
}
