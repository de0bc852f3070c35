//! Runs a command with a throwaway PostgreSQL in its `DATABASE_URL`, and ends with the command's exit code.
//!
//! ```sh
//! cargo run -p db-embedded --example with_postgres -- sh -c 'psql "$DATABASE_URL"'
//! ```

use std::process::{Command, ExitCode};

use db_embedded::Server;

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("with_postgres COMMAND [ARGUMENT..]");
        return ExitCode::from(2);
    };
    // The command may start a pooler, which must not run as root.
    let server = match Server::throwaway().allow_service_account().start() {
        Ok(server) => server,
        Err(error) => {
            eprintln!("with_postgres: {error}");
            return ExitCode::from(1);
        }
    };
    let ended = Command::new(&program).args(words).env("DATABASE_URL", server.url("postgres")).status();
    // The command's result matters; a slow server still stops by itself.
    if let Err(error) = server.release() {
        eprintln!("with_postgres: {error}");
    }
    match ended {
        Ok(status) => ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)),
        Err(error) => {
            eprintln!("with_postgres: {}: {error}", program.to_string_lossy());
            ExitCode::from(127)
        }
    }
}
