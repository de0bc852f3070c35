//! The owner of a proxy's connections, in the proxy's thread.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::link::{End, Faults, Link, Mode, Tap};
use super::peer;
use super::wire::{Target, Wire};

/// A change to the hub, made between two polls of the connections.
pub(super) type Order = Box<dyn FnOnce(&mut Hub) + Send>;

/// What happens to new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Open(Mode),
    Refusing,
}

/// Owns everything. A single thread polls the connections and carries out orders one after the other, so no byte moves during
/// an order.
pub(super) struct Hub {
    listener: TcpListener,
    us: SocketAddr,
    target: Rc<Target>,
    pub(super) faults: Rc<Faults>,
    pub(super) door: Door,
    /// Makes the listener of a new connection.
    pub(super) tap: Option<Box<dyn Fn() -> Tap>>,
    lines: Vec<Line>,
    pub(super) accepted: u64,
    pub(super) refused: u64,
}

/// A connection and its future. Dropping it closes the connection.
struct Line {
    link: Rc<Link>,
    work: Pin<Box<dyn Future<Output = End>>>,
    /// Whether it has, or will have, a connection to the server.
    is_whole: bool,
}

impl Hub {
    pub(super) fn new(listener: TcpListener, us: SocketAddr, target: Target) -> Hub {
        Hub {
            listener,
            us,
            target: Rc::new(target),
            faults: Rc::default(),
            door: Door::Open(Mode::Passing),
            tap: None,
            lines: Vec::new(),
            accepted: 0,
            refused: 0,
        }
    }

    /// Runs until all senders of orders are gone.
    pub(super) async fn run(
        mut self,
        listener: tokio::net::TcpListener,
        mut orders: UnboundedReceiver<Order>,
    ) {
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(order) => {
                        // A connection that was made before the order must be subject to it.
                        self.accept_pending();
                        order(&mut self);
                    }
                    None => return,
                },
                accepted = listener.accept() => match accepted {
                    Ok((client, peer)) => self.admit(client, peer),
                    // The client has gone already, or descriptors are exhausted; nobody waits for this error.
                    Err(error) => tracing::debug!(%error, "the proxy could not accept a connection"),
                },
                () = poll_fn(|cx| poll_all(&mut self.lines, cx)) => {}
            }
        }
    }

    /// Accepts by the other handle of the listener: tokio's accepts only what its reactor has reported.
    fn accept_pending(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((client, peer)) => match from_std(client) {
                    Ok(client) => self.admit(client, peer),
                    Err(error) => tracing::debug!(%error, "the proxy could not accept a connection"),
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn admit(&mut self, client: tokio::net::TcpStream, peer: SocketAddr) {
        let is_ours = peer::is_ours(peer, self.us).unwrap_or_else(|error| {
            tracing::warn!(%error, "connection refused: the proxy cannot find out which user connects");
            false
        });
        let client = match Wire::tcp(client) {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%error, "a connection ended right after it was accepted"),
        };
        let mode = match self.door {
            Door::Open(mode) if is_ours => mode,
            _ => {
                self.refused += 1;
                client.will_reset();
                return;
            }
        };
        self.accepted += 1;
        let link = Rc::new(Link::new(client, mode, self.tap.as_ref().map(|tap| tap())));
        let work = {
            let (link, target, faults) = (Rc::clone(&link), Rc::clone(&self.target), Rc::clone(&self.faults));
            Box::pin(async move { link.run(&target, &faults).await })
        };
        self.lines.push(Line { link, work, is_whole: true });
    }

    /// Makes new connections lead to `target`.
    pub(super) fn lead_to(&mut self, target: Target) {
        self.target = Rc::new(target);
    }

    pub(super) fn open(&self) -> usize {
        self.lines.len()
    }

    pub(super) fn set_open(&mut self, mode: Mode) {
        for line in self.lines.iter().filter(|line| line.is_whole) {
            line.link.mode.send_replace(mode);
        }
    }

    /// Ends the mode `Frozen`, and no other.
    pub(super) fn thaw(&mut self) {
        for line in &self.lines {
            line.link.mode.send_if_modified(|mode| {
                let is_frozen = *mode == Mode::Frozen;
                if is_frozen {
                    *mode = Mode::Passing;
                }
                is_frozen
            });
        }
    }

    /// Ends the faults that concern all connections together.
    pub(super) fn clear_faults(&mut self) {
        self.faults.latency.set(Duration::ZERO);
        self.faults.budget_to_client.set(None);
        self.faults.budget_to_server.set(None);
        self.faults.answer_to.borrow_mut().take();
        self.faults.before.borrow_mut().take();
    }

    pub(super) fn reset(&mut self, which: impl Fn(&Link) -> bool) {
        self.lines.retain(|line| {
            let goes = which(&line.link);
            if goes {
                line.link.client.will_reset();
            }
            !goes
        });
    }

    /// Closes the server's side of each connection, and keeps the client's.
    pub(super) fn forget(&mut self) {
        for line in &mut self.lines {
            let link = Rc::clone(&line.link);
            link.broken.set(true);
            line.is_whole = false;
            line.work = Box::pin(async move { link.discard_all().await });
        }
    }
}

pub(super) fn from_std(client: TcpStream) -> std::io::Result<tokio::net::TcpStream> {
    client.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(client)
}

/// Polls all connections, and drops those that ended. There are few, so none is tracked by its own waker.
fn poll_all(lines: &mut Vec<Line>, cx: &mut Context<'_>) -> Poll<()> {
    lines.retain_mut(|line| match line.work.as_mut().poll(cx) {
        Poll::Pending => true,
        Poll::Ready(end) => {
            if end == End::Reset {
                line.link.client.will_reset();
            }
            false
        }
    });
    Poll::Pending
}
