//! The stack of idle connections.

/// How many entries from the top a worker searches for a connection of its own.
const REACH: usize = 4;

/// A stack: the most recently returned connection is taken first. Near the top, a worker prefers a connection that it returned itself:
/// that connection's server process ran for the worker before, with warm caches, and its answer often arrives before the worker
/// starts to wait.
#[derive(Debug)]
pub(super) struct IdleStack<T> {
    /// From the least to the most recently returned connection.
    entries: Vec<(Worker, T)>,
}

impl<T> Default for IdleStack<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T> IdleStack<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn push(&mut self, worker: Worker, idle: T) {
        self.entries.push((worker, idle));
    }

    /// Takes the top entry, or the worker's own if it is near the top.
    pub(super) fn pop(&mut self, worker: Worker) -> Option<T> {
        let top = self.entries.len().checked_sub(1)?;
        let own = (0..self.entries.len().min(REACH))
            .map(|depth| top - depth)
            .find(|at| self.entries[*at].0 == worker);
        match own {
            Some(at) if at < top => Some(self.entries.remove(at).1),
            _ => self.entries.pop().map(|(_, idle)| idle),
        }
    }

    /// Takes `count` entries, the least recently used first.
    pub(super) fn drain(&mut self, count: usize) -> Vec<T> {
        self.entries.drain(..count).map(|(_, idle)| idle).collect()
    }

    /// Removes and returns all entries that are not wanted, in their order.
    pub(super) fn remove_unless(&mut self, mut is_wanted: impl FnMut(&T) -> bool) -> Vec<T> {
        let removed = self.entries.extract_if(.., |(_, idle)| !is_wanted(idle));
        removed.map(|(_, idle)| idle).collect()
    }
}

/// Identifies the current thread by the address of a thread-local.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Worker(usize);

impl Worker {
    pub(crate) fn here() -> Self {
        thread_local!(static MARK: u8 = const { 0 });
        MARK.with(|mark| Self(std::ptr::from_ref(mark).addr()))
    }

    #[cfg(test)]
    pub(super) fn numbered(number: usize) -> Self {
        Self(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Worker = Worker(1);
    const OTHER: Worker = Worker(2);

    fn stack(entries: impl IntoIterator<Item = (Worker, u32)>) -> IdleStack<u32> {
        IdleStack { entries: entries.into_iter().collect() }
    }

    #[test]
    fn a_worker_prefers_connections_that_it_returned() {
        let mut stack = stack([(ONE, 0), (ONE, 1), (OTHER, 2), (OTHER, 3)]);

        assert_eq!(stack.pop(ONE), Some(1));
        assert_eq!(stack.pop(OTHER), Some(3));
        assert_eq!(stack.pop(ONE), Some(0));
        assert_eq!(stack.pop(ONE), Some(2), "another worker's rather than none");
        assert_eq!(stack.pop(ONE), None);
    }

    #[test]
    fn a_workers_own_connection_deep_in_the_stack_is_not_taken() {
        let others = (1..=4).map(|n| (OTHER, n));
        let mut stack = stack([(ONE, 0)].into_iter().chain(others));

        assert_eq!(stack.pop(ONE), Some(4));
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let mut stack = stack((0..5).map(|n| (ONE, n)));

        assert_eq!(stack.drain(2), [0, 1]);
        assert_eq!(stack.remove_unless(|n| n % 2 == 1), [2, 4]);
        assert_eq!(stack.len(), 1);
    }

    #[test]
    fn each_thread_is_a_worker_of_its_own() {
        let here = Worker::here();
        let there = std::thread::spawn(Worker::here).join().expect("the thread's worker");

        assert_eq!(here, Worker::here());
        assert_ne!(here, there);
    }
}
