//! Checks a role and its password against what the driver can send during SCRAM authentication.

use stringprep::saslprep;

/// Whether the driver accepts a password. The driver refuses what RFC 4013 prohibits and quotes the character in its error;
/// libpq sends the bytes unchanged.
pub(super) fn driver_accepts(password: &str) -> bool {
    saslprep(password).is_ok_and(|prepared| password.is_empty() == prepared.is_empty())
}

/// Whether the driver can put a role into its first message. It applies `SASLprep` to the name together with its attribute,
/// and does not escape a comma, which ends the attribute.
pub(super) fn driver_accepts_role(role: &str) -> bool {
    !role.contains(',') && saslprep(&format!("n={role}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_that_saslprep_refuses_are_refused() {
        for good in ["", "plain", "p w", "käse", "pass\u{ad}word", "ⅸ", "שלום", "%\\'\""] {
            assert!(driver_accepts(good), "{good:?}");
        }
        for (bad, why) in [
            ("crab🦀", "not assigned in Unicode 3.2"),
            ("ends\n", "a control character"),
            ("tab\tbed", "a control character"),
            ("\u{e000}", "private use"),
            ("\u{fffd}", "inappropriate"),
            ("\u{202e}txt", "changes how it is shown"),
            ("שa", "both directions"),
            ("ש1", "ends in neither direction"),
            ("\u{221}", "not assigned in Unicode 3.2"),
            ("\u{ad}", "nothing is left of it"),
        ] {
            assert!(!driver_accepts(bad), "{why}");
        }
    }

    #[test]
    fn a_role_is_prepared_with_its_attribute() {
        for (role, is_accepted) in
            [("app", true), ("my role", true), ("a=b", true), ("a,b", false), ("שלום", false), ("🦀", false)]
        {
            assert_eq!(driver_accepts_role(role), is_accepted, "{role}");
        }
    }
}
