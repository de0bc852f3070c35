//! The pool under faults of the network, the server and its sessions: every call ends with the right answer or the right error,
//! and every slot of the pool becomes free again.

mod cancels;
mod closing;
mod commits;
mod kills;
mod links;
mod panics;
mod relay;
mod stage;
mod traffic;
