//! A server that says the same whatever it is asked.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A server that answers whatever it is sent with the same bytes. It ends with this value.
#[derive(Debug)]
pub struct Parrot {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Parrot {
    /// Begins to listen on a free port of this machine.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub async fn of(answer: &'static [u8]) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // Ends with the task.
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(serve(client, answer));
            }
        });
        Ok(Self { address, task })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Parrot {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, answer: &[u8]) {
    let mut asked = [0; 4096];
    while client.read(&mut asked).await.is_ok_and(|length| length > 0) {
        if client.write_all(answer).await.is_err() {
            return;
        }
    }
}
