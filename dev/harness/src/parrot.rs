//! A server that says what it was told to say, whatever it is asked.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

/// A server that answers what a client sends with one text after the other, the last again and again. An empty one ends the connection. It ends with
/// this value.
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
    pub async fn saying(answers: &[&'static [u8]]) -> io::Result<Self> {
        let answers = answers.to_vec();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            // Ends with the task.
            let mut clients = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                clients.spawn(serve(client, answers.clone()));
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

async fn serve(mut client: TcpStream, answers: Vec<&'static [u8]>) {
    let mut asked = [0; 4096];
    let last = answers.last().copied().unwrap_or_default();
    for answer in answers.into_iter().chain(std::iter::repeat(last)) {
        let heard = client.read(&mut asked).await;
        if !heard.is_ok_and(|length| length > 0)
            || answer.is_empty()
            || client.write_all(answer).await.is_err()
        {
            return;
        }
    }
}
