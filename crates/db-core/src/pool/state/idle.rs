//! Connections that wait for their next use.

/// A worker looks for a connection of its own among this number of entries at the top.
const REACH: usize = 4;

/// A stack: the connection given back last is taken first. Near the top, a worker prefers the connection that it gave back itself: the
/// connection's server process runs on the worker's processor, with warm caches, and the answer is often there before the worker
/// begins to wait for it.
#[derive(Debug)]
pub(super) struct IdleStack<T> {
    /// From the connection not used for longest to the one given back last.
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

    /// Takes `count` entries, first those that were not used for longest.
    pub(super) fn drain(&mut self, count: usize) -> Vec<T> {
        self.entries.drain(..count).map(|(_, idle)| idle).collect()
    }

    /// Takes all entries that are not wanted, in their order.
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
    fn a_worker_takes_what_it_gave_back_itself_before_what_others_did() {
        let mut stack = stack([(ONE, 0), (ONE, 1), (OTHER, 2), (OTHER, 3)]);

        assert_eq!(stack.pop(ONE), Some(1));
        assert_eq!(stack.pop(OTHER), Some(3));
        assert_eq!(stack.pop(ONE), Some(0));
        assert_eq!(stack.pop(ONE), Some(2), "others' rather than none");
        assert_eq!(stack.pop(ONE), None);
    }

    #[test]
    fn what_lies_deep_in_the_stack_is_left_to_idle() {
        let others = (1..=4).map(|n| (OTHER, n));
        let mut stack = stack([(ONE, 0)].into_iter().chain(others));

        assert_eq!(stack.pop(ONE), Some(4));
    }

    #[test]
    fn those_not_used_for_longest_go_first() {
        let mut stack = stack((0..5).map(|n| (ONE, n)));

        assert_eq!(stack.drain(2), [0, 1]);
        assert_eq!(stack.remove_unless(|n| n % 2 == 1), [2, 4]);
        assert_eq!(stack.len(), 1);
    }

    #[test]
    fn a_thread_is_itself_and_no_other() {
        let here = Worker::here();
        let there = std::thread::spawn(Worker::here).join().expect("a thread that tells where it is");

        assert_eq!(here, Worker::here());
        assert_ne!(here, there);
    }
}
