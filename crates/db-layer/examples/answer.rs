//! A slow answer, token by token, to several readers who come and go.
//!
//! ```text
//! DATABASE_URL=postgres://… sqlx migrate run                      # the tables of db-events
//! DATABASE_URL=postgres://… cargo run -p db-layer --example answer
//! ```
//!
//! One task appends a token now and then, as a language model would. Three tasks read: one from the beginning, one that starts
//! late, and one that stops in the middle and resumes at its cursor. All print the same answer. A log does not know what it
//! holds: an import, a job and a chat work in the same way.

use std::time::Duration;

use db_layer::{EventLogs, LogId, NewEvent, Settings};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const ANSWER: &str =
    "A cursor is the number of the last event that you have seen, so nobody has to remember you.";

#[tokio::main]
async fn main() -> Result<()> {
    let db = db_layer::open(Settings::from_environment().options()?).await?;
    let events = db.events();
    let log = events.create().await?;

    let writing = tokio::spawn(write(events.clone(), log));
    let early = tokio::spawn(read(events.clone(), log, 0));
    // Stops after five tokens. The reader needs to keep only its cursor.
    let mut stream = events.stream(log, 0);
    let mut beginning = String::new();
    while stream.cursor() < 5
        && let Some(batch) = stream.next_batch().await?
    {
        beginning.extend(batch.iter().map(|token| token.data.as_str()));
    }
    let cursor = stream.cursor();
    drop(stream);
    let late = tokio::spawn(read(events.clone(), log, 0));
    writing.await??;
    let rest = read(events.clone(), log, cursor).await?;

    println!("early:   {}", early.await??);
    println!("late:    {}", late.await??);
    println!("resumed: {beginning}{rest}");
    db.shutdown(Duration::from_secs(5)).await;
    Ok(())
}

/// Hands tokens over as they come. Tokens that arrive while a statement runs are stored together by the next statement.
async fn write(events: EventLogs, log: LogId) -> Result<()> {
    let answer = events.appender(log);
    for token in ANSWER.split_inclusive(' ') {
        answer.push(NewEvent::new("token", token)).await?;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    answer.flush().await?;
    events.finish(log, &[NewEvent::new("end", "")]).await?;
    Ok(())
}

/// Reads from a cursor to the end, live.
async fn read(events: EventLogs, log: LogId, after: i64) -> Result<String> {
    let mut stream = events.stream(log, after);
    let mut text = String::new();
    while let Some(batch) = stream.next_batch().await? {
        text.extend(batch.iter().map(|token| token.data.as_str()));
    }
    Ok(text)
}
