//! Stores a build's output.

use db_layer::NewEvent;
use db_layer::db_events::{Error, Writer};
use tokio::sync::mpsc::Receiver;

/// A batch takes no more chunks once it holds this many events.
const ENOUGH: usize = 5_000;
/// The most events of one append, and below it the most text; a single chunk may exceed both.
const MAX_EVENTS: usize = 10_000;
const MAX_BYTES: usize = 4 << 20;

/// Appends all chunks: each append stores what has arrived during the one before. Returns the log's last event.
pub(super) async fn record(mut writer: Writer, mut chunks: Receiver<Vec<NewEvent>>) -> Result<i64, Error> {
    while let Some(mut gathered) = chunks.recv().await {
        while gathered.len() < ENOUGH {
            match chunks.try_recv() {
                Ok(chunk) => gathered.extend(chunk),
                Err(_) => break,
            }
        }
        for batch in cut(&gathered) {
            writer.append(batch).await?;
        }
    }
    Ok(writer.last())
}

/// Splits events into batches within the limits of one append.
fn cut(mut events: &[NewEvent]) -> impl Iterator<Item = &[NewEvent]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fitting = events
            .iter()
            .take(MAX_EVENTS)
            .take_while(|event| {
                bytes += event.data().len();
                bytes <= MAX_BYTES
            })
            .count();
        // One event always fits, since a piece of output is small.
        let (batch, rest) = events.split_at(fitting.max(1).min(events.len()));
        events = rest;
        (!batch.is_empty()).then_some(batch)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_everything_in_order_and_are_never_too_large() {
        let events: Vec<NewEvent> = (0..25_000)
            .map(|n| NewEvent::new("stdout", "x".repeat(if n % 1000 == 0 { 300_000 } else { 10 })))
            .collect();

        let batches: Vec<&[NewEvent]> = cut(&events).collect();

        assert_eq!(batches.concat(), events);
        for batch in batches {
            assert!(batch.len() <= MAX_EVENTS);
            assert!(batch.iter().map(|event| event.data().len()).sum::<usize>() <= MAX_BYTES);
        }
        assert_eq!(cut(&[]).count(), 0);
    }
}
