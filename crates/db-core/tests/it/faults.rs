//! What becomes of a pool when the network, the server or its sessions fail: every call ends, with the right answer or the
//! right error, and every place in the pool comes back.

mod cancels;
mod closing;
mod commits;
mod kills;
mod links;
mod panics;
mod relay;
mod stage;
mod traffic;
