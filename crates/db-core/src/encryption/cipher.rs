//! The ciphers of one key.

use aes_gcm::aead::{AeadInOut, KeyInit, Nonce, Tag};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use xaes_256_gcm::Xaes256Gcm;

use super::Key;
use super::form::{Form, TAG};

const NONCE: &str = "a nonce of the form's length";

/// XAES-256-GCM (C2SP) under what is derived from the key for sealing, and AES-GCM under the key itself, for values of the
/// first form.
pub(super) struct Ciphers {
    sealing: Xaes,
    first: First,
}

/// The cipher was built for another key length, or the tag does not fit.
#[derive(Debug)]
pub(super) struct NotAuthentic;

enum First {
    Aes128(Aes128Gcm),
    Aes256(Aes256Gcm),
}

/// The only user of the crate `xaes-256-gcm`. C2SP's vectors are in the tests of this module.
pub(super) struct Xaes(Xaes256Gcm);

impl Ciphers {
    pub(super) fn new(key: &Key) -> Self {
        let first = match key.expose() {
            short @ [..] if short.len() == 16 => {
                First::Aes128(Aes128Gcm::new_from_slice(short).expect("16 bytes"))
            }
            long => First::Aes256(Aes256Gcm::new_from_slice(long).expect("a key of 16 or 32 bytes")),
        };
        Self { sealing: Xaes::new(&key.derive(&[b"db-core seal"])), first }
    }

    /// Encrypts in place, in the newest form.
    pub(super) fn seal(&self, nonce: &[u8], authenticated: &[u8], buffer: &mut [u8]) -> [u8; TAG] {
        self.sealing.seal(nonce, authenticated, buffer)
    }

    /// Decrypts in place; after an error the buffer is of no use.
    pub(super) fn open(
        &self,
        form: Form,
        nonce: &[u8],
        authenticated: &[u8],
        buffer: &mut [u8],
        tag: [u8; TAG],
    ) -> Result<(), NotAuthentic> {
        match (form, &self.first) {
            (Form::Xaes { .. }, _) => self.sealing.open(nonce, authenticated, buffer, tag),
            (Form::Aes128Gcm, First::Aes128(cipher)) => open(cipher, nonce, authenticated, buffer, tag),
            (Form::Aes256Gcm, First::Aes256(cipher)) => open(cipher, nonce, authenticated, buffer, tag),
            // The header was altered: a key of this id and of the other length would have another id.
            _ => Err(NotAuthentic),
        }
    }
}

impl Xaes {
    pub(super) fn new(key: &[u8; 32]) -> Self {
        Self(Xaes256Gcm::new(key.into()))
    }

    pub(super) fn seal(&self, nonce: &[u8], authenticated: &[u8], buffer: &mut [u8]) -> [u8; TAG] {
        let nonce = nonce.try_into().expect(NONCE);
        let tag = self.0.encrypt_inout_detached(nonce, authenticated, buffer.into());
        tag.expect("values are shorter than the cipher's limit of 64 GiB").into()
    }

    pub(super) fn open(
        &self,
        nonce: &[u8],
        authenticated: &[u8],
        buffer: &mut [u8],
        tag: [u8; TAG],
    ) -> Result<(), NotAuthentic> {
        open(&self.0, nonce, authenticated, buffer, tag)
    }
}

fn open<C: AeadInOut>(
    cipher: &C,
    nonce: &[u8],
    authenticated: &[u8],
    buffer: &mut [u8],
    tag: [u8; TAG],
) -> Result<(), NotAuthentic> {
    let nonce: &Nonce<C> = nonce.try_into().expect(NONCE);
    let tag: &Tag<C> = tag[..].try_into().expect("a tag of 16 bytes");
    cipher.decrypt_inout_detached(nonce, authenticated, buffer.into(), tag).map_err(|_| NotAuthentic)
}
