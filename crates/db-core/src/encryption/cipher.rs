//! The ciphers of one key.

use aes_gcm::aead::{AeadInOut, Nonce, Tag};
use aes_gcm::aes::Aes256Enc;
use aes_gcm::aes::cipher::BlockCipherEncrypt;
use aes_gcm::{Aes128Gcm, Aes256Gcm, KeyInit};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use zeroize::{Zeroize, Zeroizing};

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

/// XAES-256-GCM (C2SP): each nonce of 24 bytes has its own AES-256-GCM key, the CMAC of the nonce's first half. C2SP's vectors are in the
/// tests of this module.
///
/// The derivation is here because the crate for it is young and has no audit, and GCM is that of `ring`, which takes half the time.
/// `ring` does not overwrite the key of a nonce on the stack; that key seals one value.
pub(super) struct Xaes {
    cipher: Aes256Enc,
    /// The first subkey of CMAC (NIST SP 800-38B, 6.1).
    subkey: Zeroizing<[u8; BLOCK]>,
}

/// The bytes of a block of AES.
const BLOCK: usize = 16;

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
        let cipher = Aes256Enc::new(key.into());
        let mut zeros = [0; BLOCK].into();
        cipher.encrypt_block(&mut zeros);
        let mut subkey = u128::from_be_bytes(zeros.into());
        // Doubled in the field of 2^128 elements.
        subkey = (subkey << 1) ^ ((subkey >> 127) * 0x87);
        Self { cipher, subkey: subkey.to_be_bytes().into() }
    }

    pub(super) fn seal(&self, nonce: &[u8], authenticated: &[u8], buffer: &mut [u8]) -> [u8; TAG] {
        let (key, nonce) = self.of(nonce);
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(authenticated), buffer);
        let tag = tag.expect("values are shorter than the cipher's limit of 64 GiB");
        *tag.as_ref().first_chunk().expect("a tag of 16 bytes")
    }

    pub(super) fn open(
        &self,
        nonce: &[u8],
        authenticated: &[u8],
        buffer: &mut [u8],
        tag: [u8; TAG],
    ) -> Result<(), NotAuthentic> {
        let (key, nonce) = self.of(nonce);
        key.open_in_place_separate_tag(nonce, Aad::from(authenticated), tag.into(), buffer, 0..)
            .map(|_| ())
            .map_err(|_| NotAuthentic)
    }

    /// The key and the nonce of AES-256-GCM.
    fn of(&self, nonce: &[u8]) -> (LessSafeKey, ring::aead::Nonce) {
        let (first, last) = nonce.split_at(ring::aead::NONCE_LEN);
        let mut key = Zeroizing::new([0; 2 * BLOCK]);
        for (number, half) in (1..).zip(key.chunks_exact_mut(BLOCK)) {
            let mut block = [0; BLOCK];
            block[..4].copy_from_slice(&[0, number, b'X', 0]);
            block[4..].copy_from_slice(first);
            block.iter_mut().zip(&*self.subkey).for_each(|(byte, subkey)| *byte ^= subkey);
            let mut block = block.into();
            self.cipher.encrypt_block(&mut block);
            half.copy_from_slice(&block);
            block.zeroize();
        }
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("a key of 32 bytes");
        let nonce = ring::aead::Nonce::try_assume_unique_for_key(last).expect(NONCE);
        (LessSafeKey::new(key), nonce)
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
