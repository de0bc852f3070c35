//! How clients get in.

use std::io;

use pgwire::messages::response::ErrorResponse;
use pgwire::messages::startup::{Authentication, BackendKeyData, ParameterStatus, SecretKey};
use pgwire::messages::{
    PgWireBackendMessage as Out, PgWireFrontendMessage as In, SslNegotiationMetaMessage as Negotiation,
};

use super::reply::ServerError;
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

#[derive(Debug, Default)]
pub(super) struct Login {
    pub(super) password: Option<String>,
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
            match message {
                In::SslNegotiation(Negotiation::PostgresSsl(_) | Negotiation::PostgresGss(_)) => {
                    wire.put_byte(b'N');
                    wire.flush().await?;
                }
                In::SslNegotiation(Negotiation::None) => wire.context.awaiting_frontend_ssl = false,
                In::CancelRequest(request) => {
                    let SecretKey::I32(secret) = request.secret_key else { return Ok(Guest::Gone) };
                    return Ok(Guest::Cancels { pid: request.pid, secret });
                }
                In::Startup(_) => {
                    wire.context.awaiting_frontend_startup = false;
                    return self.log_in(wire).await;
                }
                _ => return Ok(Guest::Gone),
            }
        }
    }

    async fn log_in(&self, wire: &mut Wire) -> io::Result<Guest> {
        if let Some(password) = &self.password {
            wire.put(&Out::Authentication(Authentication::CleartextPassword))?;
            wire.flush().await?;
            let Some(In::PasswordMessageFamily(answer)) = wire.read().await? else { return Ok(Guest::Gone) };
            let given = answer.into_password().map_err(io::Error::other)?;
            if given.password != *password {
                let text = "password authentication failed";
                let refused = ServerError::new("28P01", text).severity("FATAL");
                wire.put(&Out::ErrorResponse(ErrorResponse::new(refused.fields())))?;
                wire.flush().await?;
                return Ok(Guest::Gone);
            }
        }
        wire.put(&Out::Authentication(Authentication::Ok))?;
        for (name, value) in PARAMETERS {
            wire.put(&Out::ParameterStatus(ParameterStatus::new(name.to_owned(), value.to_owned())))?;
        }
        Ok(Guest::Client)
    }
}

/// What a client needs to cancel.
pub(super) fn key(pid: i32, secret: i32) -> Out {
    Out::BackendKeyData(BackendKeyData::new(pid, SecretKey::I32(secret)))
}
