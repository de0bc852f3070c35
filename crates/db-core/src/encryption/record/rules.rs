//! Which of the given keys go on record, and which one seals.

use std::fmt;

use serde::Serialize;
use subtle::ConstantTimeEq;

use super::{KeyRecordError, RecordedKey};
use crate::encryption::{Key, KeyId, Keyring};

/// What a key on record is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeyState {
    /// Processes may have it, and none seals under it yet.
    Known,
    /// The one key that values are sealed under.
    Primary,
    /// Values may be sealed under it, and no new ones are.
    Retired,
    /// Nothing is sealed under it, and the columns refuse values that are.
    Destroyed,
}

impl KeyState {
    const ALL: [Self; 4] = [Self::Known, Self::Primary, Self::Retired, Self::Destroyed];

    /// The state in one word, as it is in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Known => "known",
            Self::Primary => "primary",
            Self::Retired => "retired",
            Self::Destroyed => "destroyed",
        }
    }

    pub(super) fn read(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What to do when a key that values may be sealed under was not given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum MissingKeys {
    /// Do not open the database.
    #[default]
    Refuse,
    /// Log a warning. Values under these keys do not unseal, and if the primary key is missing, nothing is sealed.
    Warn,
    /// The same, without a warning.
    Ignore,
}

/// What a process with some keys does to the record, and what it may do itself.
#[derive(Debug)]
pub(super) struct Plan<'k> {
    /// Keys to put on record.
    pub(super) add: Vec<(&'k Key, KeyState)>,
    /// The key that is primary then, if the process has it.
    pub(super) seals_under: Option<KeyId>,
    /// The process's own primary key, if it is to become primary on record.
    pub(super) candidate: Option<KeyId>,
    pub(super) warnings: Vec<String>,
}

/// Compares the keys on record with those of a process.
pub(super) fn plan<'k>(
    recorded: &[RecordedKey],
    given: &'k Keyring,
    missing: MissingKeys,
) -> Result<Plan<'k>, KeyRecordError> {
    let on_record = |id: KeyId| recorded.iter().find(|key| key.id == id);
    let is_given = |id: KeyId| given.keys().any(|key| key.id() == id);
    let (mut add, mut warnings) = (Vec::new(), Vec::new());
    let primary = recorded.iter().find(|key| key.state == KeyState::Primary).map(|key| key.id);
    for (nth, key) in given.keys().enumerate() {
        let is_first = nth == 0;
        match on_record(key.id()) {
            Some(same) if !bool::from(same.check[..].ct_eq(&key.check_value()[..])) => {
                return Err(KeyRecordError::OtherKey(key.id()));
            }
            Some(same) if same.state == KeyState::Destroyed && is_first => {
                return Err(KeyRecordError::Destroyed(key.id()));
            }
            Some(same) if same.state == KeyState::Destroyed => {
                warnings.push(format!(
                    "the old encryption key {} was destroyed: it is given for nothing",
                    key.id()
                ));
            }
            Some(same) if same.state == KeyState::Retired && is_first && primary.is_some_and(is_given) => {
                warnings.push(format!(
                    "the encryption key {} was given to seal under, and is retired on record: the primary key seals, until somebody promotes this one",
                    key.id()
                ));
            }
            Some(_) => {}
            // The first key of a database seals; those given as old ones beside it have sealed before there was a record.
            None if primary.is_none() && recorded.is_empty() => {
                add.push((key, if is_first { KeyState::Primary } else { KeyState::Retired }));
            }
            None => add.push((key, KeyState::Known)),
        }
    }

    let used = || recorded.iter().filter(|key| matches!(key.state, KeyState::Primary | KeyState::Retired));
    if used().any(|key| !is_given(key.id)) {
        let list = |texts: Vec<String>| texts.join(", ");
        let on_record = list(used().map(|key| format!("{} ({})", key.id, key.state)).collect());
        let error = KeyRecordError::Missing {
            on_record,
            given: list(given.keys().map(|key| key.id().to_string()).collect()),
        };
        match missing {
            MissingKeys::Refuse => return Err(error),
            MissingKeys::Warn => warnings.push(error.to_string()),
            MissingKeys::Ignore => {}
        }
    }

    let own = given.keys().next().expect("a keyring has a primary key").id();
    let seals_under = primary.or_else(|| recorded.is_empty().then_some(own)).filter(|id| is_given(*id));
    let may_become = on_record(own).is_none_or(|key| key.state == KeyState::Known || primary.is_none());
    let candidate = Some(own).filter(|own| seals_under != Some(*own) && may_become);
    Ok(Plan { add, seals_under, candidate, warnings })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(first: u8) -> Key {
        Key::from_bytes((first..first + 32).collect()).expect("32 bytes")
    }

    fn ring(keys: &[u8]) -> Keyring {
        keys[1..]
            .iter()
            .try_fold(Keyring::new(&key(keys[0])), |ring, old| ring.with_retired(&key(*old)))
            .expect("ids")
    }

    fn rows(rows: &[(u8, KeyState)]) -> Vec<RecordedKey> {
        let row = |(first, state): &(u8, KeyState)| RecordedKey {
            id: key(*first).id(),
            state: *state,
            is_wrapped: false,
            check: key(*first).check_value().to_vec(),
            wrapped: None,
        };
        rows.iter().map(row).collect()
    }

    /// What is added, which key seals, the candidate, and the number of warnings.
    type Outcome = (Vec<(u8, KeyState)>, Option<u8>, Option<u8>, usize);

    fn outcome(
        recorded: &[(u8, KeyState)],
        given: &[u8],
        missing: MissingKeys,
    ) -> Result<Outcome, KeyRecordError> {
        let (recorded, given_ring) = (rows(recorded), ring(given));
        let Plan { add, seals_under, candidate, warnings } = plan(&recorded, &given_ring, missing)?;
        let name = |id: KeyId| (1..9).find(|first| key(*first).id() == id).expect("a key of the test");
        let add = add.into_iter().map(|(key, state)| (name(key.id()), state)).collect();
        Ok((add, seals_under.map(name), candidate.map(name), warnings.len()))
    }

    #[test]
    fn each_start_of_a_process_is_decided_by_the_keys_on_record() {
        use KeyState::{Destroyed, Known, Primary, Retired};
        use MissingKeys::Refuse;
        for (what, recorded, given, outcome_wanted) in [
            ("the first process of a database", &[][..], &[1][..], (vec![(1, Primary)], Some(1), None, 0)),
            ("the same with an old key", &[], &[1, 2], (vec![(1, Primary), (2, Retired)], Some(1), None, 0)),
            ("the next process", &[(1, Primary)], &[1], (vec![], Some(1), None, 0)),
            ("a new key with the old one", &[(1, Primary)], &[2, 1], (vec![(2, Known)], Some(1), Some(2), 0)),
            ("the same again", &[(1, Primary), (2, Known)], &[2, 1], (vec![], Some(1), Some(2), 0)),
            ("the old program beside it", &[(1, Primary), (2, Known)], &[1], (vec![], Some(1), None, 0)),
            ("a second key in advance", &[(1, Primary)], &[1, 2], (vec![(2, Known)], Some(1), None, 0)),
            ("after the promotion", &[(1, Retired), (2, Primary)], &[2, 1], (vec![], Some(2), None, 0)),
            ("rolled back", &[(1, Retired), (2, Primary)], &[1, 2], (vec![], Some(2), None, 1)),
            ("a destroyed key beside", &[(1, Destroyed), (2, Primary)], &[2, 1], (vec![], Some(2), None, 1)),
            ("without the destroyed key", &[(1, Destroyed), (2, Primary)], &[2], (vec![], Some(2), None, 0)),
            ("no primary on record", &[(1, Retired)], &[1], (vec![], None, Some(1), 0)),
        ] {
            assert_eq!(outcome(recorded, given, Refuse).expect(what), outcome_wanted, "{what}");
        }
    }

    #[test]
    fn a_key_that_values_may_need_is_missed_and_by_choice_nobody_stops() {
        use KeyState::{Known, Primary, Retired};
        let recorded = [(1, Retired), (2, Primary), (3, Known)];

        for given in [&[1][..], &[2], &[3], &[4], &[3, 1]] {
            let error = outcome(&recorded, given, MissingKeys::Refuse).expect_err("a key is missing");
            assert!(matches!(error, KeyRecordError::Missing { .. }), "{given:?}: {error}");
        }
        assert!(outcome(&recorded, &[2, 1], MissingKeys::Refuse).is_ok(), "a known key is not needed");
        let without_primary = outcome(&recorded, &[4, 1], MissingKeys::Warn).expect("warned");
        assert_eq!(without_primary, (vec![(4, Known)], None, Some(4), 1));
        assert_eq!(
            outcome(&recorded, &[2], MissingKeys::Ignore).expect("ignored"),
            (vec![], Some(2), None, 0)
        );
    }

    #[test]
    fn the_error_of_a_wrong_key_names_the_keys_that_are_there_and_those_that_were_given() {
        let error = outcome(&[(1, KeyState::Primary)], &[2], MissingKeys::Refuse).expect_err("a wrong key");

        assert_eq!(
            error.to_string(),
            format!(
                "the database has values under the keys {} (primary), and this program was given {}: give it the missing \
                 ones as old keys, or destroy them on record once nothing needs them",
                key(1).id(),
                key(2).id()
            )
        );
    }

    #[test]
    fn another_key_of_a_recorded_id_and_a_destroyed_key_are_refused() {
        let mut recorded = rows(&[(1, KeyState::Primary)]);
        recorded[0].check[3] ^= 1;
        let error = plan(&recorded, &ring(&[1]), MissingKeys::Ignore).expect_err("another key");
        assert!(matches!(error, KeyRecordError::OtherKey(id) if id == key(1).id()), "{error}");

        let destroyed = [(1, KeyState::Destroyed), (2, KeyState::Primary)];
        let error = outcome(&destroyed, &[1, 2], MissingKeys::Refuse).expect_err("destroyed");
        assert!(matches!(error, KeyRecordError::Destroyed(id) if id == key(1).id()), "{error}");
    }
}
