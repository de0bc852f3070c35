//! The settings of the encryption keys.

use super::{Reader, Setting, Values};
use crate::encryption::{EncryptionError, Key, Keyring};

/// The three forms in which a key may be given.
struct Forms {
    raw: Setting,
    base64: Setting,
    hex: Setting,
}

static PRIMARY: Forms = Forms {
    raw: Setting {
        name: "encryption-key",
        value: "KEY",
        default: None,
        help: "The key that seals columns, as raw text: 16 or 32 bytes. Random bytes are not valid text, so prefer one of the other \
               two forms.",
        change: "To encrypt columns; prefer one of the other two forms.",
        is_secret: true,
    },
    base64: Setting {
        name: "encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "The same key in base64, for example the output of `openssl rand -base64 32`.",
        change: "To encrypt columns; a new key starts a rotation.",
        is_secret: true,
    },
    hex: Setting {
        name: "encryption-key-hex",
        value: "HEX",
        default: None,
        help: "The same key in hexadecimal digits, for example the output of `openssl rand -hex 32`.",
        change: "As the base64 form.",
        is_secret: true,
    },
};

static RETIRED: Forms = Forms {
    raw: Setting {
        name: "old-encryption-key",
        value: "KEY",
        default: None,
        help: "The previous key: values that were sealed under it can still be unsealed.",
        change: "During a key rotation, until no value is sealed under the old key.",
        is_secret: true,
    },
    base64: Setting {
        name: "old-encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "The same key in base64.",
        change: "As the raw form.",
        is_secret: true,
    },
    hex: Setting {
        name: "old-encryption-key-hex",
        value: "HEX",
        default: None,
        help: "The same key in hexadecimal digits.",
        change: "As the raw form.",
        is_secret: true,
    },
};

/// The settings of the encryption keys.
pub static KEYS: [&Setting; 6] =
    [&PRIMARY.raw, &PRIMARY.base64, &PRIMARY.hex, &RETIRED.raw, &RETIRED.base64, &RETIRED.hex];

/// The keyring. `None` when no key was given, or when one is wrong, which adds an error to the reader.
pub fn keyring(reader: &mut Reader<'_>) -> Option<Keyring> {
    let (primary, retired) = (key(reader, &PRIMARY), key(reader, &RETIRED));
    match (primary, retired) {
        (Some((_, primary)), None) => Some(Keyring::new(&primary?)),
        (Some((_, primary)), Some((setting, retired))) => Keyring::new(&primary?)
            .with_retired(&retired?)
            .map_err(|error| reader.complain(setting, format_args!("cannot be used: {error}")))
            .ok(),
        (None, Some((setting, _))) => {
            reader.complain(setting, "is given without a new key: set --encryption-key-base64, too");
            None
        }
        (None, None) => None,
    }
}

/// Whether the setting takes effect: no form of the same key comes from a higher source.
pub(super) fn takes_effect(values: &Values, setting: &Setting) -> bool {
    let of_one_key = [&PRIMARY, &RETIRED].map(|forms| [&forms.raw, &forms.base64, &forms.hex]);
    let source = |form: &&Setting| values.source(form.name);
    of_one_key
        .iter()
        .filter(|forms| forms.iter().any(|form| form.name == setting.name))
        .all(|forms| forms.iter().map(source).max() == Some(values.source(setting.name)))
}

/// The setting that was given, and its key if the value is valid.
fn key(reader: &mut Reader<'_>, forms: &'static Forms) -> Option<(&'static Setting, Option<Key>)> {
    type Decode = fn(&str) -> Result<Key, EncryptionError>;
    let forms: [(&'static Setting, Decode); 3] = [
        (&forms.raw, |text| Key::from_bytes(text.as_bytes().to_vec())),
        (&forms.base64, Key::from_base64),
        (&forms.hex, Key::from_hex),
    ];
    // Only the highest source counts.
    let given = forms.into_iter().filter(|(setting, _)| reader.values().is_given(setting.name));
    let highest = given.clone().map(|(setting, _)| reader.values().source(setting.name)).max()?;
    let mut given = given.filter(|(setting, _)| reader.values().source(setting.name) == highest);
    let (setting, decode) = given.next()?;
    let others: Vec<_> = given.map(|(other, _)| other).collect();
    for other in &others {
        let first = reader.known_as(setting);
        reader.complain(other, format_args!("gives the same key as {first}: remove one"));
    }
    let key = reader.text(setting).map(decode);
    let key = match key {
        Some(Ok(key)) if others.is_empty() => Some(key),
        Some(Err(error)) => {
            reader.complain(setting, format_args!("cannot be used: {error}"));
            None
        }
        _ => None,
    };
    Some((setting, key))
}

#[cfg(test)]
mod tests {
    use super::super::SettingSource;
    use super::*;

    #[test]
    fn the_highest_source_gives_the_key_and_one_source_must_not_give_it_twice() {
        let of = |raw: SettingSource, hex: SettingSource| {
            let mut values = Values::new(KEYS);
            for (source, name, text) in [
                (raw, "encryption-key", "sixteen letters!"),
                (hex, "encryption-key-hex", "000102030405060708090a0b0c0d0e0f"),
            ] {
                values.read(source, |setting| (setting.name == name).then(|| text.into()));
            }
            let mut reader = Reader::new(&values);
            let has_keyring = keyring(&mut reader).is_some();
            (
                has_keyring,
                reader.finish().is_ok(),
                takes_effect(&values, &PRIMARY.raw),
                takes_effect(&values, &PRIMARY.hex),
            )
        };

        assert_eq!(of(SettingSource::Flag, SettingSource::Environment), (true, true, true, false));
        assert_eq!(of(SettingSource::Program, SettingSource::Environment), (true, true, false, true));
        assert_eq!(of(SettingSource::Environment, SettingSource::Environment), (false, false, true, true));
    }
}
