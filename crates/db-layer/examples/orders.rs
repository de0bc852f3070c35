//! A minimal service: takes orders, shows them live, and shuts down in order on SIGTERM or SIGINT.
//!
//! ```text
//! DATABASE_URL=postgres://… cargo run -p db-layer --example orders
//! curl -X POST http://127.0.0.1:PORT/orders/tea     # while another terminal runs  curl http://127.0.0.1:PORT/orders
//! ```
//!
//! It needs a table: `create table orders (item text not null)`. The guide explains the program.

use std::process::ExitCode;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use db_layer::db_notify::Delivery;
use db_layer::{Db, Deadlines, NotifyAfterCommit, Settings, Signals, Topic};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    tracing_subscriber::fmt().without_time().with_ansi(false).with_writer(std::io::stderr).init();
    let mut signals = Signals::catch()?;
    let options = Settings::from_environment().options()?;
    let db = tokio::select! {
        opened = db_layer::open(options) => opened?,
        // There is nothing to close yet.
        signal = signals.next() => return Ok(ExitCode::from(signal.exit_code())),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);

    let router = Router::new().route("/orders/{item}", post(order)).route("/orders", get(follow));
    let serving = axum::serve(listener, router.with_state(db.clone()))
        .with_graceful_shutdown(db.closing().cancelled_owned());
    let ended = db.shutdown_on_signal(&mut signals, Deadlines::default(), serving).await;
    Ok(ExitCode::from(ended.exit_code()))
}

/// Stores an order, and notifies the other processes after the commit.
async fn order(State(db): State<Db>, Path(item): Path<String>) -> StatusCode {
    let topic = Topic::new("orders").expect("a name");
    let stored = db.api().tx(async |tx| {
        sqlx::query("insert into orders (item) values ($1)").bind(&item).execute(&mut *tx).await?;
        tx.notify_with(&topic, &item).expect("an item is short, and there is a bus");
        Ok::<_, db_layer::Error>(())
    });
    match stored.await {
        Ok(()) => StatusCode::CREATED,
        Err(error) => {
            tracing::error!(%error, "not ordered");
            StatusCode::SERVICE_UNAVAILABLE
        }
    }
}

/// Streams orders, a line each. The stream never ends by itself, so it ends when the service closes, with a last line.
async fn follow(State(db): State<Db>) -> Body {
    let mut orders = db.bus().subscribe(&Topic::new("orders").expect("a name"), 100);
    let closing = db.closing();
    Body::from_stream(async_stream::stream! {
        yield Ok::<_, std::convert::Infallible>("listening\n".to_owned());
        loop {
            let line = tokio::select! {
                () = closing.cancelled() => break,
                delivery = orders.recv() => match delivery {
                    Some(Delivery::Notification(order)) => format!("{}\n", order.payload()),
                    Some(_) => "some were missed\n".to_owned(),
                    None => break,
                },
            };
            yield Ok(line);
        }
        yield Ok("the service ends\n".to_owned());
    })
}
