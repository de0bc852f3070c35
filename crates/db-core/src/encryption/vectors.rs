//! The ciphers and the forms beside values that others computed: Wycheproof's, C2SP's, and those of Python's `cryptography`.

use std::sync::Arc;

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes128Gcm, Aes256Gcm};
use hkdf::Hkdf;
use sha2::Sha256;
use sha3::Shake128;
use sha3::digest::{ExtendableOutput, Update, XofReader};
use wycheproof_ng_aead::aead;
use wycheproof_ng_kdf_jose::hkdf as hkdf_cases;
use wycheproof_ng_symmetric::mac;

use super::cipher::{Ciphers, Xaes};
use super::form::{Form, TAG};
use super::key::hmac;
use super::{Columns, Context, Key, Keyring, Strategy};

fn key(bytes: &[u8]) -> Key {
    Key::from_bytes(bytes.to_vec()).expect("a key")
}

fn hex(text: &str) -> Vec<u8> {
    const_hex::decode(text).expect("hex")
}

/// Seals in the first form, as earlier versions did.
pub(super) fn first_form(short: &Key, long: &Key, plain: &[u8], place: &Context) -> [Vec<u8>; 2] {
    let nonce = [9; 12];
    let seal = |form: Form, key: &Key| {
        let header = [form.prefix(), key.id().as_bytes()].concat();
        let mut aad = header.clone();
        aad.extend_from_slice(place.encoded());
        let payload = Payload { msg: plain, aad: &aad };
        let ciphertext = match form {
            Form::Aes128Gcm => {
                Aes128Gcm::new_from_slice(key.expose()).expect("16 bytes").encrypt(&nonce.into(), payload)
            }
            _ => Aes256Gcm::new_from_slice(key.expose()).expect("32 bytes").encrypt(&nonce.into(), payload),
        };
        [header, nonce.to_vec(), ciphertext.expect("a short value")].concat()
    };
    [seal(Form::Aes128Gcm, short), seal(Form::Aes256Gcm, long)]
}

#[test]
fn aes_gcm_of_the_first_form_agrees_with_wycheproof() {
    let set = aead::TestSet::load(aead::TestName::AesGcm).expect("the cases");
    let (mut valid, mut invalid) = (0, 0);
    for group in set.test_groups {
        let form = match group.key_size {
            128 => Form::Aes128Gcm,
            256 => Form::Aes256Gcm,
            _ => continue,
        };
        if group.nonce_size != 96 {
            continue;
        }
        for case in group.tests {
            // A weak key is refused before its cipher is asked.
            let Ok(key) = Key::from_bytes(case.key.to_vec()) else { continue };
            let tag: [u8; TAG] = case.tag.to_vec().try_into().expect("a tag of 16 bytes");
            let mut buffer = case.ct.to_vec();
            let opened = Ciphers::new(&key).open(form, &case.nonce, &case.aad, &mut buffer, tag);

            assert_eq!(opened.is_err(), case.result.must_fail(), "case {}", case.tc_id);
            match opened {
                Ok(()) => {
                    assert_eq!(buffer, case.pt.to_vec(), "case {}", case.tc_id);
                    valid += 1;
                }
                Err(_) => invalid += 1,
            }
        }
    }
    assert_eq!((valid, invalid), (79, 54));
}

#[test]
fn hkdf_agrees_with_wycheproof() {
    let set = hkdf_cases::TestSet::load(hkdf_cases::TestName::HkdfSha256).expect("the cases");
    let mut ours = 0;
    for case in set.test_groups.into_iter().flat_map(|group| group.tests) {
        let mut derived = vec![0; case.size];
        let expanded = Hkdf::<Sha256>::new(Some(&case.salt), &case.ikm).expand(&case.info, &mut derived);
        assert_eq!(expanded.is_err(), case.result.must_fail(), "case {}", case.tc_id);
        if case.result.must_fail() {
            continue;
        }
        assert_eq!(derived, case.okm.to_vec(), "case {}", case.tc_id);
        // What a key does: without salt, of 16 or 32 bytes, and the first 32 bytes of the output.
        if let (true, true, Ok(key)) =
            (case.salt.is_empty(), case.size >= 32, Key::from_bytes(case.ikm.to_vec()))
        {
            assert_eq!(key.derive(&[&case.info])[..], case.okm[..32], "case {}", case.tc_id);
            ours += 1;
        }
    }
    assert!(ours > 0, "no case is without salt");
}

#[test]
fn hmac_agrees_with_wycheproof() {
    let set = mac::TestSet::load(mac::TestName::HmacSha256).expect("the cases");
    let mut cases = 0;
    for group in set.test_groups {
        let length = group.tag_size / 8;
        for case in group.tests {
            let agrees = hmac(&case.key, &case.msg)[..length] == case.tag[..];
            assert_eq!(agrees, !case.result.must_fail(), "case {}", case.tc_id);
            cases += 1;
        }
    }
    assert_eq!(cases, 174);
}

/// Made by Python, too.
#[test]
fn a_blind_index_of_another_program_is_found() {
    let columns = Columns::default();
    let index = columns.index("customers", "email").build();
    let long: Vec<u8> = (0..32).collect();
    columns.unlock(Arc::new(Keyring::new(&key(&long)))).expect("no keys yet");

    for (text, expected) in
        [("ada@example.org", "f77770837b92207caaa8bddab55a3749"), ("", "cbe351ff3c4b19bef4a0528754da5105")]
    {
        assert_eq!(const_hex::encode(index.of(text).expect("a key")), expected);
    }
}

/// The two vectors of the specification.
#[test]
fn xaes_agrees_with_its_specification() {
    let nonce = b"ABCDEFGHIJKLMNOPQRSTUVWX";
    for (key, aad, sealed) in [
        ([1; 32], "", "ce546ef63c9cc60765923609b33a9a1974e96e52daf2fcf7075e2271"),
        ([3; 32], "c2sp.org/XAES-256-GCM", "986ec1832593df5443a179437fd083bf3fdb41abd740a21f71eb769d"),
    ] {
        let xaes = Xaes::new(&key);
        let mut buffer = b"XAES-256-GCM".to_vec();

        let tag = xaes.seal(nonce, aad.as_bytes(), &mut buffer);

        assert_eq!(const_hex::encode([&buffer[..], &tag].concat()), sealed);
        xaes.open(nonce, aad.as_bytes(), &mut buffer, tag).expect("opened");
        assert_eq!(buffer, b"XAES-256-GCM");
    }
}

/// The accumulated test of the specification: inputs from SHAKE-128, and a hash of all that was sealed.
#[test]
fn xaes_agrees_with_ten_thousand_accumulated_cases() {
    assert_eq!(accumulated(10_000), "e6b9edf2df6cec60c8cbd864e2211b597fb69a529160cd040d56c0c210081939");
}

fn accumulated(cases: usize) -> String {
    let mut source = Shake128::default().finalize_xof();
    let mut all = Shake128::default();
    let mut bytes = |length: usize| {
        let mut bytes = vec![0; length];
        source.read(&mut bytes);
        bytes
    };
    for _ in 0..cases {
        let key: [u8; 32] = bytes(32).try_into().expect("32 bytes");
        let nonce = bytes(24);
        let length = usize::from(bytes(1)[0]);
        let plain = bytes(length);
        let length = usize::from(bytes(1)[0]);
        let aad = bytes(length);

        let xaes = Xaes::new(&key);
        let mut buffer = plain.clone();
        let tag = xaes.seal(&nonce, &aad, &mut buffer);
        all.update(&buffer);
        all.update(&tag);

        xaes.open(&nonce, &aad, &mut buffer, tag).expect("opened");
        assert_eq!(buffer, plain);
    }
    let mut digest = [0; 32];
    all.finalize_xof().read(&mut digest);
    const_hex::encode(digest)
}

/// Made by Python's `cryptography` from the form as it is drawn: the keys are 00..1f and 00..0f.
#[test]
fn values_that_another_program_sealed_unseal() {
    let long: Vec<u8> = (0..32).collect();
    let plan = || Context::new("builds", "plan", 7);
    for (length, place, plain, sealed) in [
        (
            32,
            plan(),
            "plan",
            "020300a94b7b2ca0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7\
             06f4f5627afbfd6fe2016c8fbe43531a7387b787",
        ),
        (
            16,
            plan().tenant("t"),
            "plan",
            "020300b6b550fda0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7\
             3d250b3765d6a1248daa0ed28b2de27f97844c29",
        ),
        (
            32,
            plan(),
            "",
            "020300a94b7b2ca0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7\
             53c216c5f9348a9df62a996b4d8e069a",
        ),
        (
            32,
            Context::new("checks", "status", 7),
            "fail",
            "020301a94b7b2ca0a1a2a3a4a5a6a7a8a9aaabacadaeafb0b1b2b3b4b5b6b7\
             10f9fd60b97fbf91337b8a9a3ec0fccc8af084b90290f3be9695951cdf2421ed189f6926e8ff36a626e4e1995763d405",
        ),
        // The first form.
        (16, plan(), "plan", "0101b6b550fda0a1a2a3a4a5a6a7a8a9aaabdaea59d5dd8061b9644ee6c07df573d0f4e4517d"),
        (32, plan(), "plan", "0102a94b7b2ca0a1a2a3a4a5a6a7a8a9aaab96741d43afdc640fb1a3d9d65f0f434b9068659c"),
    ] {
        let keyring = Keyring::new(&key(&long[..length]));

        let unsealed = keyring.unseal(&hex(sealed), &place).expect("unsealed");

        assert_eq!(unsealed.as_slice(), plain.as_bytes());
    }
}
