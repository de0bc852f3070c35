//! Padding by ISO/IEC 7816-4: one byte 0x80, then zeros up to a multiple of a length.

const MARK: u8 = 0x80;

/// The length that `length` bytes have after padding to a multiple of `multiple`; the mark takes at least one.
pub(super) fn padded(length: usize, multiple: usize) -> usize {
    (length + 1).next_multiple_of(multiple)
}

/// Appends the padding, up to `length`.
pub(super) fn pad(bytes: &mut Vec<u8>, length: usize) {
    bytes.push(MARK);
    bytes.resize(length, 0);
}

/// The length without the padding. `None` without a mark.
pub(super) fn unpadded(bytes: &[u8]) -> Option<usize> {
    bytes.iter().rposition(|&byte| byte != 0).filter(|&at| bytes[at] == MARK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    proptest! {
        #[test]
        fn what_is_padded_is_unpadded(
            plain in proptest::collection::vec(any::<u8>(), 0..100),
            multiple in 1..70_usize,
        ) {
            let length = padded(plain.len(), multiple);
            let mut bytes = plain.clone();
            pad(&mut bytes, length);

            assert_eq!(bytes.len() % multiple, 0);
            assert!((plain.len() + 1..=plain.len() + multiple).contains(&bytes.len()));
            assert_eq!(unpadded(&bytes), Some(plain.len()));
        }
    }

    #[test]
    fn what_has_no_mark_is_not_padded() {
        for bytes in [&b""[..], b"\0\0", b"a", b"\x80a\0"] {
            assert_eq!(unpadded(bytes), None, "{bytes:?}");
        }
    }
}
