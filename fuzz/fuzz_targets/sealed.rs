//! Any bytes as a sealed value, and any change to a sealed value: nothing panics, and nothing unseals that was not sealed.
#![no_main]

use std::sync::LazyLock;

use db_core::encryption::{Context, Fallback, Key, Keyring, NoEncryption, Sealed, Strategy};
use libfuzzer_sys::fuzz_target;

static KEYRING: LazyLock<Keyring> = LazyLock::new(|| {
    let key = |first: u8, length: u8| Key::from_bytes((first..first + length).collect()).expect("a key");
    Keyring::new(&key(0, 32)).with_retired(&key(0, 16)).expect("two ids")
});

fuzz_target!(|data: &[u8]| {
    let place = Context::new("builds", "plan", 7);

    // As it is: without a key, nobody can have sealed it.
    assert!(KEYRING.unseal(data, &place).is_err());
    let _ = Sealed::<()>::from_bytes(data.to_vec()).key_id();
    let plain = Fallback::new(&*KEYRING, NoEncryption).unseal(data, &place);
    assert!(
        plain.is_ok_and(|plain| *plain == data) || data.first().is_some_and(|first| (1..=7).contains(first))
    );

    // Two bytes say what to change and how, two how to pad; the rest is the value.
    let [at, bits, padding @ ..] = data.first_chunk::<4>().copied().unwrap_or_default();
    let value = data.get(4..).unwrap_or_default();
    let mut sealed = KEYRING.seal(value, &place.clone().padded(u16::from_be_bytes(padding))).expect("sealed");
    assert_eq!(*KEYRING.unseal(&sealed, &place).expect("unsealed"), value);
    let at = usize::from(at) * sealed.len() / 256;
    if bits == 0 {
        sealed.truncate(at);
    } else {
        sealed[at] ^= bits;
    }
    assert!(KEYRING.unseal(&sealed, &place).is_err(), "changed at {at}");
});
