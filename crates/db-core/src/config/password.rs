//! What the driver can say of a role and its password when the server asks by SCRAM.

use stringprep::saslprep;

/// Whether the driver can prepare a password. It refuses what RFC 4013 prohibits, where libpq sends the bytes as they are, and
/// quotes the character.
pub(super) fn can_be_said(password: &str) -> bool {
    saslprep(password).is_ok_and(|prepared| password.is_empty() == prepared.is_empty())
}

/// Whether the driver can put a role into its first message. It prepares the name together with the attribute's, and does not
/// escape a comma, which ends it.
pub(super) fn can_ask(role: &str) -> bool {
    !role.contains(',') && saslprep(&format!("n={role}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_one_that_the_driver_would_prepare() {
        for good in ["", "plain", "p w", "käse", "pass\u{ad}word", "ⅸ", "שלום", "%\\'\""] {
            assert!(can_be_said(good), "{good:?}");
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
            assert!(!can_be_said(bad), "{why}");
        }
    }

    #[test]
    fn a_role_is_prepared_with_its_attribute() {
        for (role, can) in
            [("app", true), ("my role", true), ("a=b", true), ("a,b", false), ("שלום", false), ("🦀", false)]
        {
            assert_eq!(can_ask(role), can, "{role}");
        }
    }
}
