//! The settings of the encryption keys.

use super::{Reader, Setting, Values};
use crate::encryption::{Key, KeySource, KeySources, Keyring, MissingKeys};

/// The forms in which a key may be given.
struct Forms {
    raw: Setting,
    base64: Setting,
    hex: Setting,
    file: Setting,
    folder: Setting,
    command: Setting,
}

impl Forms {
    const fn all(&'static self) -> [&'static Setting; 6] {
        [&self.raw, &self.base64, &self.hex, &self.file, &self.folder, &self.command]
    }
}

static PRIMARY: Forms = Forms {
    raw: Setting {
        name: "encryption-key",
        value: "KEY",
        default: None,
        help: "The key that seals columns, as raw text: 16 or 32 bytes. Random bytes are not valid text, so prefer one of the other \
               forms.",
        change: "To encrypt columns; prefer one of the other forms.",
        is_secret: true,
        repeats: false,
    },
    base64: Setting {
        name: "encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "The same key in base64, for example the output of `openssl rand -base64 32`.",
        change: "To encrypt columns; a new key, with the one before as an old one, starts a rotation.",
        is_secret: true,
        repeats: false,
    },
    hex: Setting {
        name: "encryption-key-hex",
        value: "HEX",
        default: None,
        help: "The same key in hexadecimal digits, for example the output of `openssl rand -hex 32`.",
        change: "As the base64 form.",
        is_secret: true,
        repeats: false,
    },
    file: Setting {
        name: "encryption-key-file",
        value: "PATH",
        default: None,
        help: "A file with the key, in base64, in hexadecimal digits, or as its bytes. It is read again while the program runs.",
        change: "Where secrets are mounted as files. Keep the file from other users of the machine.",
        is_secret: false,
        repeats: false,
    },
    folder: Setting {
        name: "encryption-key-folder",
        value: "PATH",
        default: None,
        help: "A folder with a file for each key, old ones included. The file `primary` contains the name of the file whose key seals. It \
               is read again while the program runs.",
        change: "Where secrets are mounted as files, to rotate keys without a restart.",
        is_secret: false,
        repeats: false,
    },
    command: Setting {
        name: "encryption-key-command",
        value: "COMMAND",
        default: None,
        help: "A command that prints the key within 10 s, such as `age -d -i id key.age`. It is run without a shell, and again every five minutes.",
        change: "To keep the key in age, sops, Vault or a cloud's key service.",
        is_secret: true,
        repeats: false,
    },
};

static OLD: Forms = Forms {
    raw: Setting {
        name: "old-encryption-key",
        value: "KEY",
        default: None,
        help: "A previous key: values that were sealed under it can still be unsealed.",
        change: "During a key rotation, until the old key is destroyed.",
        is_secret: true,
        repeats: true,
    },
    base64: Setting {
        name: "old-encryption-key-base64",
        value: "BASE64",
        default: None,
        help: "A previous key in base64.",
        change: "As the raw form.",
        is_secret: true,
        repeats: true,
    },
    hex: Setting {
        name: "old-encryption-key-hex",
        value: "HEX",
        default: None,
        help: "A previous key in hexadecimal digits.",
        change: "As the raw form.",
        is_secret: true,
        repeats: true,
    },
    file: Setting {
        name: "old-encryption-key-file",
        value: "PATH",
        default: None,
        help: "A file with a previous key.",
        change: "As the raw form.",
        is_secret: false,
        repeats: true,
    },
    folder: Setting {
        name: "old-encryption-key-folder",
        value: "PATH",
        default: None,
        help: "A folder with previous keys. If it has several, it has a file `primary`, too.",
        change: "As the raw form.",
        is_secret: false,
        repeats: true,
    },
    command: Setting {
        name: "old-encryption-key-command",
        value: "COMMAND",
        default: None,
        help: "A command that prints a previous key.",
        change: "As the raw form.",
        is_secret: true,
        repeats: true,
    },
};

static USE: Setting = Setting {
    name: "encryption-key-use",
    value: "USE",
    default: Some("seal"),
    help: "`seal`: the given keys seal columns. `wrap`: they wrap data keys, which seal columns and are on record in the database.",
    change: "To replace the given key without touching a value.",
    is_secret: false,
    repeats: false,
};

static MISSING: Setting = Setting {
    name: "encryption-keys-missing",
    value: "CHOICE",
    default: Some("refuse"),
    help: "What to do at the start if values may be sealed under a key that is not given: `refuse` to start, `warn`, or `ignore` it.",
    change: "To go on after a key was lost.",
    is_secret: false,
    repeats: false,
};

/// The settings of the encryption keys.
pub static KEYS: [&Setting; 14] = {
    let [a, b, c, d, e, f] = PRIMARY.all();
    let [g, h, i, j, k, l] = OLD.all();
    [a, b, c, d, e, f, g, h, i, j, k, l, &USE, &MISSING]
};

/// Whether a key is given, in any form.
#[must_use]
pub fn has_key(values: &Values) -> bool {
    [&PRIMARY, &OLD].iter().flat_map(|forms| forms.all()).any(|setting| values.is_given(setting.name))
}

/// Whether the given keys wrap data keys, and what to do if a key is missing.
pub fn key_use(reader: &mut Reader<'_>) -> (bool, MissingKeys) {
    let one = |reader: &mut Reader<'_>, setting: &'static Setting, words: &[&str]| {
        let text = reader.text(setting).unwrap_or_default().trim();
        words.iter().position(|word| *word == text).unwrap_or_else(|| {
            reader.complain(setting, format_args!("must be {}", words.join(" or ")));
            0
        })
    };
    let wraps = one(reader, &USE, &["seal", "wrap"]) == 1;
    let choices = [MissingKeys::Refuse, MissingKeys::Warn, MissingKeys::Ignore];
    (wraps, choices[one(reader, &MISSING, &["refuse", "warn", "ignore"])])
}

/// The sources of the keys. `None` when no key was given, or when one is wrong, which adds an error to the reader.
pub fn keys(reader: &mut Reader<'_>) -> Option<KeySources> {
    let primary = given(reader, &PRIMARY);
    let old = given(reader, &OLD);
    if let [(first, _), rest @ ..] = &*primary {
        let first = reader.known_as(first);
        for (other, _) in rest {
            reader.complain(other, format_args!("gives the same key as {first}: remove one"));
        }
    } else if let [(setting, _), ..] = &*old {
        reader.complain(setting, "is given without a new key: set --encryption-key-base64, too");
    }
    let [(setting, Some(text))] = *primary else { return None };
    let primary = source(reader, &PRIMARY, setting, text)?;
    let mut ring = value(&primary).map(Keyring::new);
    let mut sources = KeySources::new(primary);
    let old =
        old.iter().flat_map(|(setting, text)| each(&OLD, setting, *text).map(move |one| (*setting, one)));
    let mut is_good = true;
    for (setting, text) in old {
        let Some(source) = source(reader, &OLD, setting, text) else {
            is_good = false;
            continue;
        };
        if let (Some(together), Some(key)) = (&ring, value(&source)) {
            match together.clone().with_retired(key) {
                Ok(more) => ring = Some(more),
                Err(error) => {
                    reader.complain(setting, format_args!("cannot be used: {error}"));
                    is_good = false;
                }
            }
        }
        sources = sources.with_old(source);
    }
    is_good.then_some(sources)
}

/// The key, if it is given itself.
fn value(source: &KeySource) -> Option<&Key> {
    match source {
        KeySource::Value(key) => Some(key),
        _ => None,
    }
}

/// Whether the setting takes effect: no form of the same key comes from a higher source.
pub(super) fn takes_effect(values: &Values, setting: &Setting) -> bool {
    let source = |form: &&Setting| values.source(form.name);
    [&PRIMARY, &OLD]
        .iter()
        .map(|forms| forms.all())
        .filter(|forms| forms.iter().any(|form| form.name == setting.name))
        .all(|forms| forms.iter().map(source).max() == Some(values.source(setting.name)))
}

/// The forms that were given, by the highest source only, with their texts.
fn given<'v>(reader: &mut Reader<'v>, forms: &'static Forms) -> Vec<(&'static Setting, Option<&'v str>)> {
    let values = reader.values();
    let all = forms.all().into_iter().filter(|setting| values.is_given(setting.name));
    let highest = all.clone().map(|setting| values.source(setting.name)).max();
    all.filter(|setting| Some(values.source(setting.name)) == highest)
        .map(|setting| (setting, reader.text(setting)))
        .collect()
}

/// The values of a setting that repeats: one a line, and as digits also one between commas.
fn each<'t>(forms: &Forms, setting: &Setting, text: Option<&'t str>) -> impl Iterator<Item = &'t str> {
    let are_digits = [forms.base64.name, forms.hex.name].contains(&setting.name);
    text.unwrap_or_default()
        .split(move |c| c == '\n' || are_digits && c == ',')
        .map(|value| value.trim_end_matches('\r'))
        .filter(|value| !value.trim().is_empty())
}

fn source(reader: &mut Reader<'_>, forms: &Forms, setting: &Setting, text: &str) -> Option<KeySource> {
    let is = |form: &Setting| form.name == setting.name;
    let key = match () {
        () if is(&forms.file) => return Some(KeySource::File(text.into())),
        () if is(&forms.folder) => return Some(KeySource::Folder(text.into())),
        () if is(&forms.command) => return Some(KeySource::Command(text.to_owned())),
        () if is(&forms.base64) => Key::from_base64(text),
        () if is(&forms.hex) => Key::from_hex(text),
        () => Key::from_bytes(text.as_bytes().to_vec()),
    };
    key.map(KeySource::Value)
        .map_err(|error| reader.complain(setting, format_args!("cannot be used: {error}")))
        .ok()
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
            let has_keyring = keys(&mut reader).is_some();
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
