//! How clients get in.

use std::io;

use bytes::{Bytes, BytesMut};
use pgwire::messages::response::ErrorResponse;
use pgwire::messages::startup::{
    Authentication, BackendKeyData, ParameterStatus, PasswordMessageFamily, SecretKey,
};
use pgwire::messages::{
    PgWireBackendMessage as Out, PgWireFrontendMessage as In, SslNegotiationMetaMessage as Negotiation,
};

use super::reply::ServerError;
use super::scram::{MECHANISM, Verifier};
use super::tls::Tls;
use super::wire::Wire;

/// What a server tells each client of itself.
const PARAMETERS: [(&str, &str); 7] = [
    ("server_version", "15.0"),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, MDY"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
];

/// What clients need to get in: a password, and TLS if they ask for it.
pub(super) struct Login {
    pub(super) verifier: Option<Verifier>,
    pub(super) tls: Option<Tls>,
}

/// What a client wants.
pub(super) enum Guest {
    Client,
    /// It has closed the connection, or has no right password.
    Gone,
    Cancels {
        pid: i32,
        secret: i32,
    },
}

impl Login {
    pub(super) async fn admit(&self, wire: &mut Wire) -> io::Result<Guest> {
        loop {
            let Some(message) = wire.read().await? else { return Ok(Guest::Gone) };
            match (message, &self.tls) {
                (In::SslNegotiation(Negotiation::PostgresSsl(_)), Some(tls)) => {
                    wire.put_byte(b'S');
                    wire.flush().await?;
                    wire.encrypt(&tls.acceptor).await?;
                    // No other negotiation comes after this one.
                    wire.context.awaiting_frontend_ssl = false;
                }
                (In::SslNegotiation(Negotiation::PostgresSsl(_) | Negotiation::PostgresGss(_)), _) => {
                    wire.put_byte(b'N');
                    wire.flush().await?;
                }
                (In::SslNegotiation(Negotiation::None), _) => wire.context.awaiting_frontend_ssl = false,
                (In::CancelRequest(request), _) => {
                    // The key of a session here has four bytes.
                    let secret = request.secret_key.as_i32();
                    return Ok(
                        secret.map_or(Guest::Gone, |secret| Guest::Cancels { pid: request.pid, secret })
                    );
                }
                (In::Startup(startup), _) => {
                    wire.context.awaiting_frontend_startup = false;
                    let user = startup.parameters.get("user").map_or("", String::as_str);
                    return self.log_in(wire, user).await;
                }
                _ => return Ok(Guest::Gone),
            }
        }
    }

    async fn log_in(&self, wire: &mut Wire, user: &str) -> io::Result<Guest> {
        if let Some(verifier) = &self.verifier {
            match exchange(wire, verifier, user).await? {
                Some(Ok(())) => {}
                Some(Err(refused)) => {
                    wire.put(&Out::ErrorResponse(ErrorResponse::new(refused.fields())))?;
                    wire.flush().await?;
                    return Ok(Guest::Gone);
                }
                None => return Ok(Guest::Gone),
            }
        }
        wire.put(&Out::Authentication(Authentication::Ok))?;
        for (name, value) in PARAMETERS {
            wire.put(&Out::ParameterStatus(ParameterStatus::new(name.to_owned(), value.to_owned())))?;
        }
        Ok(Guest::Client)
    }
}

/// Asks for the password by SCRAM. `None` if the client has gone.
async fn exchange(
    wire: &mut Wire,
    verifier: &Verifier,
    user: &str,
) -> io::Result<Option<Result<(), ServerError>>> {
    let nonce: String = std::iter::repeat_with(fastrand::alphanumeric).take(24).collect();

    wire.put(&Out::Authentication(Authentication::SASL(vec![MECHANISM.to_owned()])))?;
    let Some(first) = response(wire).await? else { return Ok(None) };
    let Some(first) = initial(&first) else {
        let text = "client selected an invalid SASL authentication mechanism";
        return Ok(Some(Err(ServerError::new("08P01", text).severity("FATAL"))));
    };
    let exchange = match verifier.begin(first, &nonce) {
        Ok(exchange) => exchange,
        Err(refused) => return Ok(Some(Err(refused))),
    };
    let challenge = Bytes::copy_from_slice(exchange.challenge.as_bytes());
    wire.put(&Out::Authentication(Authentication::SASLContinue(challenge)))?;
    let Some(last) = response(wire).await? else { return Ok(None) };
    Ok(Some(match exchange.end(std::str::from_utf8(&last).unwrap_or_default()) {
        Ok(Some(signature)) => {
            wire.put(&Out::Authentication(Authentication::SASLFinal(signature.into())))?;
            Ok(())
        }
        Ok(None) => {
            let text = format!("password authentication failed for user \"{user}\"");
            Err(ServerError::new("28P01", text).severity("FATAL"))
        }
        Err(refused) => Err(refused),
    }))
}

/// The body of the client's next message about its password.
async fn response(wire: &mut Wire) -> io::Result<Option<BytesMut>> {
    wire.flush().await?;
    Ok(match wire.read().await? {
        Some(In::PasswordMessageFamily(PasswordMessageFamily::Raw(body))) => Some(body),
        _ => None,
    })
}

/// The text in a client's first message, whose body is the mechanism, a zero byte, and the length of the text.
fn initial(body: &[u8]) -> Option<&str> {
    let text = body.strip_prefix(MECHANISM.as_bytes())?.strip_prefix(&[0])?.get(4..)?;
    std::str::from_utf8(text).ok()
}

/// What a client needs to cancel.
pub(super) fn key(pid: i32, secret: i32) -> Out {
    Out::BackendKeyData(BackendKeyData::new(pid, SecretKey::I32(secret)))
}
