//! `DATABASE_URL=postgres://… cargo run -p admin`, and open the address that it prints.

use std::process::ExitCode;

use db_layer::{Deadlines, Migrations, Settings, Signals};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let mut signals = Signals::catch()?;
    let migrations = Migrations::from_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/migrations")).await?;
    let options = Settings::from_environment().options()?.migrations(migrations);
    let db = tokio::select! {
        opened = db_layer::open(options) => opened?,
        // There is nothing to close yet.
        signal = signals.next() => return Ok(ExitCode::from(signal.exit_code())),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);

    let serving = axum::serve(listener, admin::router(db.clone()))
        .with_graceful_shutdown(db.closing().cancelled_owned());
    let ended = db.shutdown_on_signal(&mut signals, Deadlines::default(), serving).await;
    Ok(ExitCode::from(ended.exit_code()))
}
