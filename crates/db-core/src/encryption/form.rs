//! The forms of a sealed value, as they are drawn in the [module's documentation](super).

use super::{EncryptionError, KeyId};

/// The length of the tag of all ciphers.
pub(super) const TAG: usize = 16;
/// The first bytes from which a value counts as sealed: the versions that exist, and those that later programs may write.
const VERSIONS: std::ops::RangeInclusive<u8> = 1..=7;

/// How a value is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Version 1, algorithm 1.
    Aes128Gcm,
    /// Version 1, algorithm 2.
    Aes256Gcm,
    /// Version 2, algorithm 3.
    Xaes { is_padded: bool },
}

/// A sealed value, cut at the borders of its fields. Nothing in it is authenticated yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    pub(super) form: Form,
    pub(super) key_id: KeyId,
    pub(super) header: &'a [u8],
    pub(super) nonce: &'a [u8],
    pub(super) ciphertext: &'a [u8],
    pub(super) tag: [u8; TAG],
}

/// Why bytes are not [`Parts`].
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    NotSealed,
    Newer { part: &'static str, number: u8 },
    CutOff,
}

const FORMS: [Form; 4] =
    [Form::Aes128Gcm, Form::Aes256Gcm, Form::Xaes { is_padded: false }, Form::Xaes { is_padded: true }];

impl Form {
    /// The bytes before the key's id.
    pub(super) fn prefix(self) -> &'static [u8] {
        match self {
            Form::Aes128Gcm => &[1, 1],
            Form::Aes256Gcm => &[1, 2],
            Form::Xaes { is_padded: false } => &[2, 3, 0],
            Form::Xaes { is_padded: true } => &[2, 3, 1],
        }
    }

    pub(super) fn header(self) -> usize {
        self.prefix().len() + KeyId::LENGTH
    }

    pub(super) fn nonce(self) -> usize {
        match self {
            Form::Aes128Gcm | Form::Aes256Gcm => 12,
            Form::Xaes { .. } => 24,
        }
    }

    /// What a sealed value has more than the plain one.
    pub(super) fn overhead(self) -> usize {
        self.header() + self.nonce() + TAG
    }

    fn of(bytes: &[u8]) -> Result<Form, Unreadable> {
        let newer = |part, number| Err(Unreadable::Newer { part, number });
        match *bytes {
            [1, 1, ..] => Ok(Form::Aes128Gcm),
            [1, 2, ..] => Ok(Form::Aes256Gcm),
            [2, 3, 0, ..] => Ok(Form::Xaes { is_padded: false }),
            [2, 3, 1, ..] => Ok(Form::Xaes { is_padded: true }),
            [1 | 2] | [2, 3] => Err(Unreadable::CutOff),
            [2, 3, framing, ..] => newer("framing", framing),
            [1 | 2, algorithm, ..] => newer("algorithm", algorithm),
            [version, ..] if VERSIONS.contains(&version) => newer("version", version),
            _ => Err(Unreadable::NotSealed),
        }
    }
}

/// What [`Parts::read`] says of a column's bytes, in SQL: the key's id as hexadecimal digits, or `cut`, `newer`, `plain`, null.
///
/// Nothing before the key's id is compressed or encrypted, and `substring` takes the first bytes of a long value alone. The newest form,
/// which most values have, is compared first.
pub(super) fn header_sql(column: &str) -> String {
    let mut newest_first = FORMS;
    newest_first.sort_by_key(|form| std::cmp::Reverse(form.prefix()[0]));
    let forms = newest_first.map(|form| {
        let (prefix, at) = (form.prefix(), form.prefix().len() + 1);
        format!(
            "when substring({column} for {}) = '\\x{}'::bytea then \
             case when octet_length({column}) < {} then 'cut' else encode(substring({column} from {at} for {}), 'hex') end",
            prefix.len(),
            const_hex::encode(prefix),
            form.overhead(),
            KeyId::LENGTH,
        )
    });
    let cut = ["01", "02", "0203"].map(|bytes| format!("'\\x{bytes}'::bytea")).join(", ");
    let (first, last) = VERSIONS.into_inner();
    format!(
        "case when {column} is null then null {} \
         when {column} in ({cut}) then 'cut' \
         when substring({column} for 1) between '\\x{first:02x}'::bytea and '\\x{last:02x}'::bytea then 'newer' \
         else 'plain' end",
        forms.join(" "),
    )
}

impl<'a> Parts<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Unreadable> {
        let form = Form::of(bytes)?;
        let cut = |from: &'a [u8], at| from.split_at_checked(at).ok_or(Unreadable::CutOff);
        let (header, rest) = cut(bytes, form.header())?;
        let (nonce, rest) = cut(rest, form.nonce())?;
        let (ciphertext, tag) = rest.split_last_chunk().ok_or(Unreadable::CutOff)?;
        let key_id = *header.last_chunk().expect("a header ends with a key's id");
        Ok(Self { form, key_id: KeyId(key_id), header, nonce, ciphertext, tag: *tag })
    }
}

impl Unreadable {
    pub(super) fn at(self, place: String) -> EncryptionError {
        match self {
            Self::NotSealed => EncryptionError::NotSealed { place },
            Self::Newer { part, number } => EncryptionError::Newer { place, part, number },
            Self::CutOff => EncryptionError::Malformed { place, what: "it was cut off" },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::any;
    use proptest::proptest;

    use super::*;

    #[test]
    fn a_newer_form_is_neither_unsealed_nor_of_an_unknown_key() {
        for (bytes, part, number) in [
            ([3, 0, 0, 0], "version", 3),
            ([7, 3, 0, 0], "version", 7),
            ([1, 3, 0, 0], "algorithm", 3),
            ([2, 4, 0, 0], "algorithm", 4),
            ([2, 2, 0, 0], "algorithm", 2),
            ([2, 3, 2, 0], "framing", 2),
        ] {
            assert_eq!(Parts::read(&bytes), Err(Unreadable::Newer { part, number }), "{bytes:?}");
        }
    }

    #[test]
    fn what_begins_as_no_version_does_is_not_sealed() {
        for bytes in [&b""[..], b"\0", b"{\"plan\":1}", b"DE02", b"\x08\x01", b"\xff"] {
            assert_eq!(Parts::read(bytes), Err(Unreadable::NotSealed), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn a_value_that_is_read_consists_of_its_parts(
            form in 0..4_usize,
            rest in proptest::collection::vec(any::<u8>(), 0..80),
        ) {
            let bytes = [FORMS[form].prefix(), &rest].concat();

            match Parts::read(&bytes) {
                Ok(parts) => {
                    assert_eq!(parts.form, FORMS[form]);
                    assert_eq!([parts.header, parts.nonce, parts.ciphertext, &parts.tag].concat(), bytes);
                    assert_eq!(parts.ciphertext.len() + parts.form.overhead(), bytes.len());
                }
                Err(error) => {
                    assert_eq!(error, Unreadable::CutOff);
                    assert!(bytes.len() < FORMS[form].overhead());
                }
            }
        }
    }
}
