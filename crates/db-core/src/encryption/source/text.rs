//! Keys as files and commands give them.

use std::path::Path;

use tokio::io::AsyncReadExt;
use zeroize::Zeroizing;

use super::KeySource;
use crate::encryption::{EncryptionError, Key};

/// More than any form of a key has, in bytes.
pub(super) const LONGEST: u64 = 4096;

/// The key that a text is.
pub(super) fn key(bytes: &[u8]) -> Result<Key, String> {
    let say = |error: EncryptionError| error.to_string();
    let is_text = bytes.trim_ascii_end().iter().all(|byte| matches!(byte, b' '..=b'~' | b'\r' | b'\n'));
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if is_text => text.trim(),
        _ => return Key::from_bytes(bytes.to_vec()).map_err(say),
    };
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    let lines = text.lines().filter(|line| !line.trim().is_empty()).count();
    if lines > 1 {
        return Err(format!("it has {lines} lines, and one key is wanted"));
    }
    if matches!(text.len(), 32 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Key::from_hex(text).map_err(say);
    }
    match Key::from_base64(text) {
        Err(EncryptionError::KeyEncoding(_)) if matches!(bytes.len(), 16 | 32) => {
            Key::from_bytes(bytes.to_vec()).map_err(say)
        }
        Err(EncryptionError::KeyEncoding(_)) => {
            Err("it is no key in hexadecimal digits or base64".to_owned())
        }
        read => read.map_err(say),
    }
}

/// A whole file, if it is not longer than a key may be.
pub(super) async fn file(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let mut text = Zeroizing::new(Vec::with_capacity(256));
    tokio::fs::File::open(path).await?.take(LONGEST).read_to_end(&mut text).await?;
    Ok(text)
}

/// A warning when everybody on the machine may read the source.
pub(super) async fn too_open(source: &KeySource) -> Option<String> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let (KeySource::File(path) | KeySource::Folder(path)) = source else { return None };
        let mode = tokio::fs::metadata(path).await.ok()?.permissions().mode();
        // Of a folder, those may read the keys who may enter it.
        let bit = if matches!(source, KeySource::File(_)) { 0o004 } else { 0o001 };
        (mode & bit != 0)
            .then(|| format!("{source} can be read by every user of this machine: `chmod o-rwx` it"))
    }
    #[cfg(not(unix))]
    {
        let _ = source;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_in_each_form_and_nothing_else_is() {
        let wanted = Key::from_bytes((0..16).collect()).expect("16 bytes").id();
        let raw: Vec<u8> = (0..16).collect();
        for text in [
            &b"000102030405060708090a0b0c0d0e0f"[..],
            b" 000102030405060708090A0B0C0D0E0F\r\n",
            b"AAECAwQFBgcICQoLDA0ODw==\n",
            &raw,
        ] {
            assert_eq!(key(text).expect("a key").id(), wanted, "{text:?}");
        }
        let random: Vec<u8> = (200..232).collect();
        assert_eq!(key(&random).expect("a key").id(), Key::from_bytes(random).expect("32 bytes").id());
        for (text, complaint) in [
            (&b""[..], "it is empty"),
            (b"\n", "it is empty"),
            (
                b"000102030405060708090a0b0c0d0e0f\n000102030405060708090a0b0c0d0e0e",
                "it has 2 lines, and one key is wanted",
            ),
            (b"0001", "an encryption key must have 16 or 32 bytes, this one has 3"),
            (b"no key at all", "it is no key in hexadecimal digits or base64"),
            (&[0xff; 33], "an encryption key must have 16 or 32 bytes, this one has 33"),
            (&[0xff; 16], "all bytes of an encryption key are equal: make keys of random bytes"),
        ] {
            assert_eq!(key(text).expect_err("no key"), complaint);
        }
    }
}
