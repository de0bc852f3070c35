//! A relay before a proxy. It recognizes the pool's control connection by its application name.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use db_testkit::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use url::Url;

/// A protocol message that passed through, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    /// From the server, on the control connection.
    Control(u8),
    /// From the server, on another connection.
    Down(u8),
    /// To the server, on another connection.
    Up(u8),
}

/// `ReadyForQuery`.
pub(super) const READY: u8 = b'Z';
/// `Sync`: a round trip without a statement.
pub(super) const SYNC: u8 = b'S';

pub(super) struct Relay {
    url: Url,
    shared: Arc<Shared>,
    running: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    held: watch::Sender<bool>,
    waiting: AtomicUsize,
    passed: Mutex<Vec<Passed>>,
}

impl Relay {
    pub(super) async fn before(proxy: &Proxy) -> Self {
        let mut url = Url::parse(&proxy.url()).expect("the proxy's address");
        let behind = url.port().expect("the proxy's port");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        url.set_port(Some(port)).expect("an address with a port");
        let shared = Arc::new(Shared::default());
        let running = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let mut links = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    let server = TcpStream::connect(("127.0.0.1", behind)).await.expect("the proxy");
                    links.spawn(link(client, server, Arc::clone(&shared)));
                }
            }
        });
        Self { url, shared, running }
    }

    pub(super) fn url(&self) -> String {
        self.url.to_string()
    }

    /// Holds back the statements of the control connection.
    pub(super) fn hold(&self) {
        self.shared.held.send_replace(true);
    }

    pub(super) fn release(&self) {
        self.shared.held.send_replace(false);
    }

    /// Whether a statement is held back.
    pub(super) fn holds(&self) -> bool {
        self.shared.waiting.load(Ordering::Relaxed) > 0
    }

    /// The messages that have passed so far.
    pub(super) fn passed(&self) -> Vec<Passed> {
        self.shared.passed.lock().expect("not poisoned").clone()
    }

    /// The number of complete answers on the control connection.
    pub(super) fn control_answers(&self) -> usize {
        self.passed().iter().filter(|passed| **passed == Passed::Control(READY)).count()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn link(client: TcpStream, server: TcpStream, shared: Arc<Shared>) {
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    // The startup message has no type byte.
    let Some(startup) = body(&mut from_client).await else { return };
    let is_control = String::from_utf8_lossy(&startup).contains(" control\0");
    if to_server.write_all(&startup).await.is_err() {
        return;
    }
    tokio::select! {
        () = upstream(from_client, to_server, &shared, is_control) => {}
        () = downstream(from_server, to_client, &shared, is_control) => {}
    }
}

async fn upstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, is_control: bool) {
    let mut held = shared.held.subscribe();
    while let Some((kind, message)) = frame(&mut from).await {
        // Holds back statements; pings pass.
        if is_control && matches!(kind, b'P' | b'B') {
            shared.waiting.fetch_add(1, Ordering::Relaxed);
            held.wait_for(|held| !held).await.expect("the relay exists");
            shared.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        if !is_control {
            shared.passed.lock().expect("not poisoned").push(Passed::Up(kind));
        }
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn downstream(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, shared: &Shared, is_control: bool) {
    while let Some((kind, message)) = frame(&mut from).await {
        let passed = if is_control { Passed::Control(kind) } else { Passed::Down(kind) };
        shared.passed.lock().expect("not poisoned").push(passed);
        if to.write_all(&message).await.is_err() {
            return;
        }
    }
}

async fn frame(from: &mut OwnedReadHalf) -> Option<(u8, Vec<u8>)> {
    let kind = from.read_u8().await.ok()?;
    let mut message = vec![kind];
    message.extend(body(from).await?);
    Some((kind, message))
}

/// Reads a length, which includes itself, and the rest of the message.
async fn body(from: &mut OwnedReadHalf) -> Option<Vec<u8>> {
    let length = from.read_u32().await.ok()?;
    let mut message = length.to_be_bytes().to_vec();
    message.resize(length as usize, 0);
    from.read_exact(&mut message[4..]).await.ok()?;
    Some(message)
}
