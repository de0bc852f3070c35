//! buildwatch as a program.

mod bad_input;
mod configuring;
mod data_folder;
mod environment;
mod following;
mod http;
mod interrupting;
mod keys;
mod limiting;
mod live;
#[cfg(page_tests)]
mod page;
mod printing;
mod running;
mod serving;
mod sharing;
mod starting;
mod support;
