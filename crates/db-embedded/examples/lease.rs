//! Holds a lease on a server, prints its address, and ends when its standard input does.
//!
//! ```text
//! cargo run -p db-embedded --example lease                 # a throwaway of its own
//! cargo run -p db-embedded --example lease -- shared demo  # start it twice: one server
//! cargo run -p db-embedded --example lease -- kept ./data  # keeps what you put in
//! ```

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use db_embedded::Server;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let builder = match words[..] {
        [] => Server::throwaway(),
        ["shared", name] => Server::shared(name),
        ["kept", dir] => Server::kept(dir),
        _ => {
            eprintln!("usage: lease [shared NAME | kept DIR]");
            return ExitCode::from(2);
        }
    };
    let server = match builder.start() {
        Ok(server) => server,
        Err(error) => {
            eprintln!("{error}");
            if let Some(source) = std::error::Error::source(&error) {
                eprintln!("{source}");
            }
            return ExitCode::FAILURE;
        }
    };
    println!("{}", server.url("postgres"));
    println!(
        "PostgreSQL {}, process {:?}, data in {}",
        server.version(),
        server.postmaster_pid(),
        server.data_dir().display()
    );
    println!("Ctrl-D ends the lease.");
    // A closed terminal or pipe ends the input, too.
    let _ = std::io::stdout().flush();
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
    match server.release() {
        Ok(released) => {
            println!("{released:?}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
