//! The server's side of SCRAM-SHA-256 (RFC 5802 and RFC 7677), as PostgreSQL has it. Values: they know no socket.

use std::num::NonZeroU32;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use ring::hmac::{HMAC_SHA256, Key, sign};
use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};

use super::reply::ServerError;

/// The only mechanism that is offered. The one with channel binding is not.
pub(super) const MECHANISM: &str = "SCRAM-SHA-256";

/// PostgreSQL's default.
const ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).expect("it is not zero");

type Bytes = [u8; SHA256_OUTPUT_LEN];

/// What a server stores of a password.
pub(super) struct Verifier {
    salt: [u8; 16],
    stored_key: Bytes,
    server_key: Bytes,
}

/// An exchange whose client has sent its first message.
pub(super) struct Exchange<'a> {
    verifier: &'a Verifier,
    /// The header of the client's first message, about channel binding, and the rest of that message.
    header: &'a str,
    bare: &'a str,
    nonce: String,
    /// The server's first message.
    pub(super) challenge: String,
}

impl Verifier {
    pub(super) fn of(password: &str, salt: [u8; 16]) -> Verifier {
        // As the server does: a password that cannot be prepared is taken as it is.
        let prepared = stringprep::saslprep(password).unwrap_or(password.into());
        let mut salted = Bytes::default();
        derive(PBKDF2_HMAC_SHA256, ITERATIONS, &salt, prepared.as_bytes(), &mut salted);
        let stored_key = hash(&keyed(&salted, b"Client Key"));
        Verifier { salt, stored_key, server_key: keyed(&salted, b"Server Key") }
    }

    /// Reads the client's first message, `n,,n=NAME,r=NONCE`.
    pub(super) fn begin<'a>(&'a self, message: &'a str, nonce: &str) -> Result<Exchange<'a>, ServerError> {
        let header = message.get(..3).filter(|it| matches!(*it, "n,," | "y,,")).ok_or_else(malformed)?;
        let bare = &message[3..];
        let (name, rest) = bare.split_once(',').ok_or_else(malformed)?;
        let theirs = rest.split(',').next().and_then(|it| it.strip_prefix("r="));
        let theirs = theirs.filter(|it| !it.is_empty() && name.starts_with("n=")).ok_or_else(malformed)?;
        let nonce = format!("{theirs}{nonce}");
        let challenge = format!("r={nonce},s={},i={ITERATIONS}", BASE64_STANDARD.encode(self.salt));
        Ok(Exchange { verifier: self, header, bare, nonce, challenge })
    }
}

impl Exchange<'_> {
    /// Reads the client's last message, `c=HEADER,r=NONCE,p=PROOF`. Returns the server's last one, or `None` if the password is
    /// another.
    pub(super) fn end(&self, message: &str) -> Result<Option<String>, ServerError> {
        let (unproved, proof) = message.rsplit_once(",p=").ok_or_else(malformed)?;
        let expected = format!("c={},r={}", BASE64_STANDARD.encode(self.header), self.nonce);
        let proof = BASE64_STANDARD.decode(proof).ok().and_then(|it| Bytes::try_from(it).ok());
        let proof = proof.filter(|_| unproved == expected).ok_or_else(malformed)?;

        let said = format!("{},{},{unproved}", self.bare, self.challenge);
        let signature = keyed(&self.verifier.stored_key, said.as_bytes());
        let client_key: Bytes = std::array::from_fn(|at| proof[at] ^ signature[at]);
        if hash(&client_key) != self.verifier.stored_key {
            return Ok(None);
        }
        let signature = keyed(&self.verifier.server_key, said.as_bytes());
        Ok(Some(format!("v={}", BASE64_STANDARD.encode(signature))))
    }
}

fn malformed() -> ServerError {
    ServerError::new("08P01", "malformed SCRAM message").severity("FATAL")
}

fn keyed(key: &Bytes, text: &[u8]) -> Bytes {
    bytes(sign(&Key::new(HMAC_SHA256, key), text).as_ref())
}

fn hash(text: &Bytes) -> Bytes {
    bytes(digest(&SHA256, text).as_ref())
}

fn bytes(digest: &[u8]) -> Bytes {
    digest.try_into().expect("the digest has this length")
}

#[cfg(test)]
mod tests {
    use super::*;

    // The example of RFC 7677.
    const FIRST: &str = "n,,n=user,r=rOprNGfwEbeRWgbNEkqO";
    const SERVERS_NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const LAST: &str = "c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                        p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";

    fn verifier(password: &str) -> Verifier {
        let salt = BASE64_STANDARD.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::of(password, salt.try_into().unwrap())
    }

    #[test]
    fn the_messages_are_those_of_the_rfc() {
        let verifier = verifier("pencil");

        let exchange = verifier.begin(FIRST, SERVERS_NONCE).unwrap();

        let challenge =
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        assert_eq!(exchange.challenge, challenge);
        let last = exchange.end(LAST).unwrap();
        assert_eq!(last.as_deref(), Some("v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="));
    }

    #[test]
    fn another_password_has_another_proof() {
        let verifier = verifier("pencils");

        assert_eq!(verifier.begin(FIRST, SERVERS_NONCE).unwrap().end(LAST), Ok(None));
    }

    #[test]
    fn messages_of_another_form_are_refused() {
        let verifier = verifier("pencil");

        for first in
            ["", "n,,", "n,,n=user", "n,a=other,n=user,r=x", "p=tls-unique,,n=user,r=x", "n,,n=user,r="]
        {
            assert!(verifier.begin(first, SERVERS_NONCE).is_err(), "{first}");
        }
        let exchange = verifier.begin(FIRST, SERVERS_NONCE).unwrap();
        for (good, bad) in
            [("c=biws", "c=eSws"), ("k0,p", "k1,p"), (",p=", ",q="), ("VQ=", "="), ("VQ=", "VQ=VQ=")]
        {
            assert!(exchange.end(&LAST.replace(good, bad)).is_err(), "{bad}");
        }
    }
}
