//! Helpers of the tests.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use axum::Router;
use db_layer::{Config, Db, Migrations, Options};
use db_testkit::TestDb;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Limit for every wait in these tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn open(db: &TestDb) -> Db {
    db_layer::open(options(db).await).await.expect("an open database")
}

pub(crate) async fn options(db: &TestDb) -> Options {
    let config = Config::from_url(&db.url()).expect("the test database's address");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../migrations");
    let migrations = Migrations::from_dir(folder).await.expect("migrations");
    Options::new(config).migrations(migrations)
}

/// Serves routes until it is dropped.
pub(crate) struct Served {
    pub(crate) address: String,
    _server: AbortOnDropHandle<()>,
}

impl Served {
    pub(crate) fn new(address: String, server: AbortOnDropHandle<()>) -> Self {
        Self { address, _server: server }
    }
}

pub(crate) async fn serve(routes: Router) -> Served {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let server = tokio::spawn(async move { axum::serve(listener, routes).await.expect("serves") });
    Served::new(address, AbortOnDropHandle::new(server))
}

pub(crate) fn client() -> reqwest::Client {
    reqwest::Client::builder().timeout(PATIENCE).no_proxy().build().expect("a client")
}

/// A client that sends the beginning of a body, and no more.
pub(crate) struct Endless(TcpStream);

impl Endless {
    pub(crate) async fn begin(served: &Served) -> Self {
        let address: SocketAddr = served.address.trim_start_matches("http://").parse().expect("an address");
        let mut stream = TcpStream::connect(address).await.expect("connected");
        let begun = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000000000\r\n\r\n\"";
        stream.write_all(begun.as_bytes()).await.expect("sent");
        Self(stream)
    }

    /// The answer until it has this in it, in lower case.
    pub(crate) async fn answer(mut self, part: &str) -> String {
        let mut answer = vec![0; 4096];
        let mut read = 0;
        while !String::from_utf8_lossy(&answer[..read]).contains(part) {
            let more =
                timeout(PATIENCE, self.0.read(&mut answer[read..])).await.expect("in time").expect("read");
            assert!(more > 0, "{}", String::from_utf8_lossy(&answer[..read]));
            read += more;
        }
        String::from_utf8_lossy(&answer[..read]).to_lowercase()
    }
}
