//! Sealing and unsealing a value, beside ciphers alone and beside the way of Concourse: two columns of hexadecimal text.

use std::hint::black_box;
use std::time::{Duration, Instant};

use aes_gcm::aead::{Aead, Generate, Nonce};
use aes_gcm::{Aes256Gcm, KeyInit};
use db_core::encryption::{Context, Key, Keyring, Strategy};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use xaes_256_gcm::Xaes256Gcm;

use crate::load::Slice;
use crate::report::Report;
use crate::rounds::{Arm, interleave, narrow};

/// Some thousands of operations on 16 KiB.
const SLICE: Duration = Duration::from_millis(40);

/// Operations between two looks at the clock.
const BATCH: u32 = 16;

const KEY: [u8; 32] = *b"0123456789abcdef0123456789abcdef";

/// Seals and unseals a value, and returns what was unsealed.
type Once = Box<dyn Fn(&[u8]) -> Vec<u8>>;

/// With `only`, runs these arms without ratios.
pub(crate) fn measure(rounds: usize, only: &[String]) -> anyhow::Result<Report> {
    let sizes = [("100", 100), ("1k", 1024), ("16k", 16 * 1024)];
    let mut arms: Vec<Arm<'_>> = sizes.iter().flat_map(|(name, size)| of_size(name, *size)).collect();

    let what = "one thread, no server".to_owned();
    if narrow(&mut arms, only)? {
        return Ok(interleave(&arms, rounds)?.report(what, Vec::new()));
    }
    let measured = interleave(&arms, rounds)?;
    let mut rows = Vec::new();
    for (size, _) in sizes {
        let arm = |name: &str| format!("seal.{size}.{name}");
        for peer in ["original", "original_const_hex"] {
            rows.push(measured.rates(arm(&format!("vs_{peer}")), &arm("ours"), &arm(peer)));
        }
        for peer in ["xaes", "aes_gcm", "ring"] {
            rows.push(measured.times(arm(&format!("vs_{peer}")), &arm("ours"), &arm(peer)));
        }
    }
    Ok(measured.report(what, rows))
}

fn of_size(name: &str, size: usize) -> Vec<Arm<'static>> {
    let plain: Vec<u8> = (b'a'..=b'z').cycle().take(size).collect();
    let of = |peer: &str, once: Once| {
        let plain = plain.clone();
        Arm::new(format!("seal.{name}.{peer}"), SLICE, move |slice| Ok(repeat(slice, &plain, &once)))
    };
    vec![
        of("ours", ours()),
        of("xaes", bare(Xaes256Gcm::new(&KEY.into()))),
        of("aes_gcm", bare(Aes256Gcm::new(&KEY.into()))),
        of("ring", with_ring()),
        of("original", original(|bytes| hex::encode(bytes), |text| hex::decode(text).expect("hex"))),
        of(
            "original_const_hex",
            original(|bytes| const_hex::encode(bytes), |text| const_hex::decode(text).expect("hex")),
        ),
    ]
}

/// Operations per second, and no latency, since the clock costs a tenth of an operation.
fn repeat(slice: Duration, plain: &[u8], once: &dyn Fn(&[u8]) -> Vec<u8>) -> Slice {
    let began = Instant::now();
    let mut operations = 0;
    while began.elapsed() < slice {
        for _ in 0..BATCH {
            assert_eq!(black_box(once(black_box(plain))).len(), plain.len());
        }
        operations += BATCH;
    }
    Slice::of(f64::from(operations) / began.elapsed().as_secs_f64(), None)
}

fn ours() -> Once {
    let keyring = Keyring::new(&Key::from_bytes(KEY.to_vec()).expect("a key"));
    let place = Context::new("customers", "iban", 17);
    Box::new(move |plain| {
        let sealed = keyring.seal(plain, &place).expect("sealed");
        std::mem::take(&mut keyring.unseal(&sealed, &place).expect("unsealed"))
    })
}

/// A cipher of `RustCrypto` with a random nonce from the operating system, and nothing authenticated beside the value.
fn bare<C: Aead + 'static>(cipher: C) -> Once {
    Box::new(move |plain| {
        let nonce = Nonce::<C>::generate();
        let sealed = cipher.encrypt(&nonce, plain).expect("sealed");
        cipher.decrypt(&nonce, &*sealed).expect("unsealed")
    })
}

fn with_ring() -> Once {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).expect("a key"));
    let random = SystemRandom::new();
    Box::new(move |plain| {
        let mut nonce = [0; 12];
        random.fill(&mut nonce).expect("random bytes");
        let nonce = || ring::aead::Nonce::assume_unique_for_key(nonce);
        let mut buffer = plain.to_vec();
        key.seal_in_place_append_tag(nonce(), Aad::empty(), &mut buffer).expect("sealed");
        let length = key.open_in_place(nonce(), Aad::empty(), &mut buffer).expect("unsealed").len();
        buffer.truncate(length);
        buffer
    })
}

/// AES-256-GCM, the value and its nonce each as hexadecimal text.
fn original(encode: fn(&[u8]) -> String, decode: fn(&str) -> Vec<u8>) -> Once {
    let cipher = Aes256Gcm::new(&KEY.into());
    Box::new(move |plain| {
        let nonce = Nonce::<Aes256Gcm>::generate();
        let sealed = cipher.encrypt(&nonce, plain).expect("sealed");
        let (value, nonce) = (encode(&sealed), encode(&nonce));

        let (sealed, nonce) = (decode(&value), decode(&nonce));
        let nonce: &Nonce<Aes256Gcm> = nonce.as_slice().try_into().expect("12 bytes");
        cipher.decrypt(nonce, &*sealed).expect("unsealed")
    })
}
