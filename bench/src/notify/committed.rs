//! Compares commits with the notifications about them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use anyhow::Context;

use crate::latency::nanoseconds;

/// A commit with a notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Committed {
    /// The number of the topic.
    pub(super) topic: u32,
    /// A time before the notification, in nanoseconds since 1970: the only clock that processes share.
    pub(super) at: u64,
}

/// A received notification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Heard {
    pub(super) topic: u32,
    pub(super) at: u64,
}

pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The latency of each commit at one process, at most: one notification stands for all commits of its topic that waited together,
/// and does not say for which. `heard` is in the order of receipt.
///
/// A commit's notification is the first one after it, unless an earlier commit of the topic has not been notified yet: then the first
/// may be that of the earlier commit, and the next one, if there is one, stands for both.
pub(super) fn delays(committed: &[Committed], heard: &[Heard]) -> anyhow::Result<Vec<u32>> {
    let mut topics = HashMap::<u32, (Vec<u64>, Option<usize>)>::new();
    for Heard { topic, at } in heard {
        topics.entry(*topic).or_default().0.push(*at);
    }
    let mut committed = committed.to_vec();
    committed.sort_unstable_by_key(|committed| committed.at);
    let mut delays = Vec::with_capacity(committed.len());
    for Committed { topic, at } in committed {
        let missing = || format!("a process received no notification of a commit of topic {topic}");
        let (received, before) = topics.get_mut(&topic).with_context(missing)?;
        let first = received.partition_point(|received| *received < at);
        let is_sure = before.is_none_or(|before| before < first);
        let next = if is_sure { first } else { (first + 1).min(received.len() - 1) };
        let heard = received.get(next).filter(|heard| **heard >= at).with_context(missing)?;
        *before = Some(next);
        delays.push(nanoseconds(Duration::from_nanos(heard - at)));
    }
    Ok(delays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(committed: &[(u32, u64)], heard: &[(u32, u64)]) -> Option<Vec<u32>> {
        let committed: Vec<_> = committed.iter().map(|&(topic, at)| Committed { topic, at }).collect();
        let heard: Vec<_> = heard.iter().map(|&(topic, at)| Heard { topic, at }).collect();
        delays(&committed, &heard).ok()
    }

    #[test]
    fn a_commit_is_notified_by_the_first_later_notification_of_its_topic() {
        assert_eq!(
            of(&[(1, 100), (2, 110), (1, 200)], &[(1, 105), (2, 150), (1, 230)]),
            Some(vec![5, 40, 30])
        );
    }

    #[test]
    fn a_notification_that_may_belong_to_an_earlier_commit_is_not_counted_if_there_is_another() {
        assert_eq!(of(&[(1, 100), (1, 110)], &[(1, 120), (1, 140)]), Some(vec![20, 30]));
        assert_eq!(of(&[(1, 100), (1, 110), (1, 115)], &[(1, 120)]), Some(vec![20, 10, 5]));
    }

    #[test]
    fn a_commit_without_a_notification_is_an_error() {
        assert_eq!(of(&[(1, 100)], &[]), None);
        assert_eq!(of(&[(1, 100)], &[(2, 105)]), None);
        assert_eq!(of(&[(1, 100), (1, 110)], &[(1, 105)]), None);
    }
}
