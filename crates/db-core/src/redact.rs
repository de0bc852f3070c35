//! Texts of driver errors, for logs and messages.

/// The text of a driver error without C line numbers and without values.
pub(crate) fn redacted(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(database) => {
            if database.code().is_some_and(|code| code.starts_with("22")) {
                "a value does not fit".to_owned()
            } else {
                database.message().to_owned()
            }
        }
        sqlx::Error::Io(io) => io.to_string(),
        sqlx::Error::Tls(tls) => tls.to_string(),
        // Texts of decoders and encoders may quote the value.
        sqlx::Error::ColumnDecode { index, .. } => format!("column {index} could not be decoded"),
        sqlx::Error::Decode(_) => "a value could not be decoded".to_owned(),
        sqlx::Error::Encode(_) => "a parameter could not be encoded".to_owned(),
        other => other.to_string(),
    }
}
