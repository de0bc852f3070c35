//! A client's connection, as messages.

use std::io;

use bytes::BytesMut;
use pgwire::error::PgWireError;
use pgwire::messages::{DecodeContext, PgWireBackendMessage, PgWireFrontendMessage};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

/// A socket, or TLS over it.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Wire {
    stream: Box<dyn Stream>,
    pub(super) context: DecodeContext,
    inbound: BytesMut,
    outbound: BytesMut,
}

impl Wire {
    pub(super) fn new(stream: Box<dyn Stream>) -> Wire {
        let (context, inbound, outbound) = (DecodeContext::default(), BytesMut::new(), BytesMut::new());
        Wire { stream, context, inbound, outbound }
    }

    /// Lets the client begin TLS. The connection is lost if that fails.
    pub(super) async fn encrypt(&mut self, acceptor: &TlsAcceptor) -> io::Result<()> {
        if !self.inbound.is_empty() {
            // As the server does: bytes that came in plain text are not taken for encrypted ones.
            return Err(io::Error::new(io::ErrorKind::InvalidData, "bytes came ahead of TLS"));
        }
        let plain = std::mem::replace(&mut self.stream, Box::new(tokio::io::empty()));
        self.stream = Box::new(acceptor.accept(plain).await?);
        Ok(())
    }

    /// The next message; `None` when the client has closed the connection. Cancel-safe.
    pub(super) async fn read(&mut self) -> io::Result<Option<PgWireFrontendMessage>> {
        loop {
            let decoded = PgWireFrontendMessage::decode(&mut self.inbound, &self.context);
            if let Some(message) = decoded.map_err(invalid)? {
                return Ok(Some(message));
            }
            if self.stream.read_buf(&mut self.inbound).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// Keeps what the client sends meanwhile, and returns when it closes the connection. Cancel-safe.
    pub(super) async fn closed(&mut self) {
        while self.stream.read_buf(&mut self.inbound).await.is_ok_and(|read| read > 0) {}
    }

    /// For the next flush.
    pub(super) fn put(&mut self, message: &PgWireBackendMessage) -> io::Result<()> {
        message.encode(&mut self.outbound).map_err(invalid)
    }

    pub(super) fn put_byte(&mut self, byte: u8) {
        self.outbound.extend_from_slice(&[byte]);
    }

    pub(super) fn mark(&self) -> usize {
        self.outbound.len()
    }

    /// Takes back what was put after the mark; half of it stays, if that is asked for.
    pub(super) fn take_back(&mut self, mark: usize, is_half: bool) {
        let kept = if is_half { (self.outbound.len() - mark) / 2 } else { 0 };
        self.outbound.truncate(mark + kept);
    }

    pub(super) async fn flush(&mut self) -> io::Result<()> {
        let sent = self.stream.write_all(&self.outbound).await;
        self.outbound.clear();
        sent?;
        self.stream.flush().await
    }
}

fn invalid(error: PgWireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
