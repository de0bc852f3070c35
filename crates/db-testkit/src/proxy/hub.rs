//! What runs in the proxy's thread, and owns all of its connections.

use std::future::poll_fn;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;

use super::link::{End, Faults, Link, Mode};
use super::peer;
use super::wire::{Target, Wire};

/// Something to do between two moves of the bytes.
pub(super) type Order = Box<dyn FnOnce(&mut Hub) + Send>;

/// What new connections find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    Open(Mode),
    Refusing,
}

/// The one owner of everything. A single thread polls its connections and carries out orders, one after the other: so an
/// order is a step that nothing comes between.
pub(super) struct Hub {
    listener: TcpListener,
    us: SocketAddr,
    target: Rc<Target>,
    pub(super) faults: Rc<Faults>,
    pub(super) door: Door,
    lines: Vec<Line>,
    pub(super) accepted: u64,
    pub(super) refused: u64,
}

/// A connection and what it does. To drop it is to close it.
struct Line {
    link: Rc<Link>,
    work: Pin<Box<dyn Future<Output = End>>>,
    /// It has a side towards the server, or will have one.
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
            lines: Vec::new(),
            accepted: 0,
            refused: 0,
        }
    }

    /// Until nobody can give orders any more.
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
                        // Whoever has connected before the order was given is subject to it.
                        self.admit_the_waiting();
                        order(&mut self);
                    }
                    None => return,
                },
                accepted = listener.accept() => match accepted {
                    Ok((client, peer)) => self.admit(client, peer),
                    // The client has gone already, or descriptors are short; there is nobody to tell.
                    Err(error) => tracing::debug!(%error, "a connection did not get to the proxy"),
                },
                () = poll_fn(|cx| poll_all(&mut self.lines, cx)) => {}
            }
        }
    }

    /// On the listener's other handle: tokio's would not try before it has heard of them.
    fn admit_the_waiting(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((client, peer)) => match from_std(client) {
                    Ok(client) => self.admit(client, peer),
                    Err(error) => tracing::debug!(%error, "a connection did not get to the proxy"),
                },
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    fn admit(&mut self, client: tokio::net::TcpStream, peer: SocketAddr) {
        let is_ours = peer::is_ours(peer, self.us).unwrap_or_else(|error| {
            tracing::warn!(%error, "nobody is let through the proxy, since nobody tells who it is");
            false
        });
        let client = match Wire::tcp(client) {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%error, "a connection ended at once"),
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
        let link = Rc::new(Link::new(client, mode));
        let work = {
            let (link, target, faults) = (Rc::clone(&link), Rc::clone(&self.target), Rc::clone(&self.faults));
            Box::pin(async move { link.run(&target, &faults).await })
        };
        self.lines.push(Line { link, work, is_whole: true });
    }

    /// Has connections that are let in from now on lead there.
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

    /// Of all modes this one.
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

    /// Takes back what is set for all connections together.
    pub(super) fn calm(&mut self) {
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

    /// Closes the server's side of each, and keeps the client's.
    pub(super) fn forget(&mut self) {
        for line in &mut self.lines {
            let link = Rc::clone(&line.link);
            link.broken.set(true);
            line.is_whole = false;
            line.work = Box::pin(async move { link.stay_silent().await });
        }
    }
}

pub(super) fn from_std(client: TcpStream) -> std::io::Result<tokio::net::TcpStream> {
    client.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(client)
}

/// Lets each connection do what it can, and drops those that ended. There are few, so all are asked each time.
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
