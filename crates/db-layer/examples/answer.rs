//! A slow answer, token by token, to several readers who come and go.
//!
//! ```text
//! DATABASE_URL=postgres://… sqlx migrate run                      # the tables of db-events
//! DATABASE_URL=postgres://… cargo run -p db-layer --example answer
//! ```
//!
//! One task writes, as a model would: a token now and then. Three read: one from the beginning, one who comes late, and one who
//! goes away in the middle and resumes where it was. All of them print the same answer. A log knows nothing of what it holds: it may
//! belong to an import, a job or a chat just as well.

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
    // Goes away after five tokens. What it has to keep is one number.
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

/// Hands tokens over as they come. What gathers while one statement is under way is stored together by the next.
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
