//! One end of a connection, by TCP or Unix socket.

use std::io;
use std::path::PathBuf;

use sqlx::postgres::PgConnectOptions;
use tokio::net::{TcpStream, UnixStream};

/// Where the server is.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Target {
    pub(super) fn of(options: &PgConnectOptions) -> Target {
        let (host, port) = (options.get_host(), options.get_port());
        let folder = options.get_socket().cloned().or_else(|| host.starts_with('/').then(|| host.into()));
        match folder {
            Some(folder) => Target::Unix(folder.join(format!(".s.PGSQL.{port}"))),
            None => Target::Tcp(host.to_owned(), port),
        }
    }

    pub(super) async fn connect(&self) -> io::Result<Wire> {
        Ok(match self {
            Target::Tcp(host, port) => Wire::tcp(TcpStream::connect((host.as_str(), *port)).await?)?,
            Target::Unix(path) => Wire::Unix(UnixStream::connect(path).await?),
        })
    }
}

#[derive(Debug)]
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    pub(super) fn tcp(stream: TcpStream) -> io::Result<Wire> {
        stream.set_nodelay(true)?;
        Ok(Wire::Tcp(stream))
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => stream.readable().await,
            Wire::Unix(stream) => stream.readable().await,
        }
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        match self {
            Wire::Tcp(stream) => stream.writable().await,
            Wire::Unix(stream) => stream.writable().await,
        }
    }

    pub(super) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => stream.try_read(into),
            Wire::Unix(stream) => stream.try_read(into),
        }
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Tcp(stream) => stream.try_write(bytes),
            Wire::Unix(stream) => stream.try_write(bytes),
        }
    }

    /// Makes the coming close a reset.
    pub(super) fn will_reset(&self) {
        if let Wire::Tcp(stream) = self
            && let Err(error) = stream.set_zero_linger()
        {
            tracing::debug!(%error, "a connection could not be reset, so it is closed");
        }
    }
}
