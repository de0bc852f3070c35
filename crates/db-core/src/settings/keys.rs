//! The keys that columns are sealed under.

use super::{Reader, Setting, Values};
use crate::encryption::{EncryptionError, Key, Keyring};

/// The forms in which a key may be given.
struct Forms {
    raw: Setting,
    base64: Setting,
    hex: Setting,
}

static NEW: Forms = Forms {
    raw: Setting {
        name: "encryption-key",
        value: "KEY",
        default: None,
        help: "The key that columns are sealed under, as it is: 16 or 32 bytes. Random bytes are no text, so one of the other \
               two forms is the better choice.",
        change: "To seal columns, in one of the other two forms.",
        is_secret: true,
    },
    base64: Setting {
        name: "encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "The same in base64: what `openssl rand -base64 32` prints.",
        change: "To seal columns; a new one to rotate keys.",
        is_secret: true,
    },
    hex: Setting {
        name: "encryption-key-hex",
        value: "HEX",
        default: None,
        help: "The same in hexadecimal digits: what `openssl rand -hex 32` prints.",
        change: "The same.",
        is_secret: true,
    },
};

static OLD: Forms = Forms {
    raw: Setting {
        name: "old-encryption-key",
        value: "KEY",
        default: None,
        help: "The key that was in force before: what is still sealed under it can be unsealed.",
        change: "While keys are rotated: until nothing is sealed under the old one any more.",
        is_secret: true,
    },
    base64: Setting {
        name: "old-encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "The same in base64.",
        change: "The same.",
        is_secret: true,
    },
    hex: Setting {
        name: "old-encryption-key-hex",
        value: "HEX",
        default: None,
        help: "The same in hexadecimal digits.",
        change: "The same.",
        is_secret: true,
    },
};

/// The keys that columns are sealed under.
pub static KEYS: [&Setting; 6] = [&NEW.raw, &NEW.base64, &NEW.hex, &OLD.raw, &OLD.base64, &OLD.hex];

/// The keyring; `None` when no key was given, or something is wrong with one.
pub fn keyring(reader: &mut Reader<'_>) -> Option<Keyring> {
    let (new, old) = (key(reader, &NEW), key(reader, &OLD));
    match (new, old) {
        (Some((_, new)), None) => Some(Keyring::new(&new?)),
        (Some((_, new)), Some((_, old))) => Some(Keyring::new(&new?).with_retired(&old?)),
        (None, Some((setting, _))) => {
            reader
                .complain(setting, "is there without a new key: give that, too, as --encryption-key-base64");
            None
        }
        (None, None) => None,
    }
}

/// Whether no form of the same key comes from a higher source. Of what is no key, none does.
pub(super) fn is_heard(values: &Values, setting: &Setting) -> bool {
    let of_one_key = [&NEW, &OLD].map(|forms| [&forms.raw, &forms.base64, &forms.hex]);
    let source = |form: &&Setting| values.source(form.name);
    of_one_key
        .iter()
        .filter(|forms| forms.iter().any(|form| form.name == setting.name))
        .all(|forms| forms.iter().map(source).max() == Some(values.source(setting.name)))
}

/// The setting that was given and its key, if that can be used.
fn key(reader: &mut Reader<'_>, forms: &'static Forms) -> Option<(&'static Setting, Option<Key>)> {
    type Decode = fn(&str) -> Result<Key, EncryptionError>;
    let forms: [(&'static Setting, Decode); 3] = [
        (&forms.raw, |text| Key::from_bytes(text.as_bytes().to_vec())),
        (&forms.base64, Key::from_base64),
        (&forms.hex, Key::from_hex),
    ];
    // A source above the others is heard alone.
    let given = forms.into_iter().filter(|(setting, _)| reader.values().is_given(setting.name));
    let highest = given.clone().map(|(setting, _)| reader.values().source(setting.name)).max()?;
    let mut given = given.filter(|(setting, _)| reader.values().source(setting.name) == highest);
    let (setting, decode) = given.next()?;
    let others: Vec<_> = given.map(|(other, _)| other).collect();
    for other in &others {
        let first = reader.known_as(setting);
        reader.complain(other, format_args!("gives the same key as {first}: leave one out"));
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
    fn a_key_from_a_higher_source_is_heard_alone_and_one_source_says_it_once() {
        let of = |raw: SettingSource, hex: SettingSource| {
            let mut values = Values::new(KEYS);
            for (source, name, text) in [
                (raw, "encryption-key", "sixteen letters!"),
                (hex, "encryption-key-hex", "000102030405060708090a0b0c0d0e0f"),
            ] {
                values.read(source, |setting| (setting.name == name).then(|| text.into()));
            }
            let mut reader = Reader::new(&values);
            let is_there = keyring(&mut reader).is_some();
            (is_there, reader.finish().is_ok(), is_heard(&values, &NEW.raw), is_heard(&values, &NEW.hex))
        };

        assert_eq!(of(SettingSource::Flag, SettingSource::Environment), (true, true, true, false));
        assert_eq!(of(SettingSource::Program, SettingSource::Environment), (true, true, false, true));
        assert_eq!(of(SettingSource::Environment, SettingSource::Environment), (false, false, true, true));
    }
}
