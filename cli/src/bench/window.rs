//! The numbers of one client: which instruction stands behind each, and which are unresolved.

use fieldstream_shared::limits::NUMBER_WINDOW;

const SLOTS: usize = NUMBER_WINDOW as usize;

/// An instruction of an earlier step or of none: its outcome makes room and counts for nothing else.
const FORGOTTEN: u32 = u32::MAX;

/// What became known of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolved {
    /// It is of this instruction of the step.
    Index(u32),
    /// It is of an earlier step.
    Earlier,
    /// It was resolved before, or never sent.
    Known,
}

/// A client's numbers in one epoch.
#[derive(Debug, Clone)]
pub(super) struct Window {
    epoch: u64,
    /// The lowest number that is not resolved.
    settled: u64,
    /// The next number.
    next: u64,
    /// Bit `n` is set if `settled + n` is resolved; bit 0 never is.
    resolved: u32,
    indices: [u32; SLOTS],
    /// How many may be unresolved, as the server says.
    limit: u64,
}

impl Window {
    /// Numbers from 1.
    pub(super) fn new(epoch: u64) -> Window {
        Window { epoch, settled: 1, next: 1, resolved: 0, indices: [FORGOTTEN; SLOTS], limit: NUMBER_WINDOW }
    }

    /// The epoch.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The next number given.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// The server allows so many unresolved numbers.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit.clamp(1, NUMBER_WINDOW);
    }

    /// Whether another number may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.next < self.settled + self.limit
    }

    /// Whether every number is resolved.
    pub(super) fn is_quiet(&self) -> bool {
        self.next == self.settled
    }

    /// Numbers an instruction: the number, and the lowest unresolved one.
    pub(super) fn take(&mut self, index: u32) -> (u64, u64) {
        let number = self.next;
        self.indices[slot(number)] = index;
        self.next += 1;
        (number, self.settled)
    }

    /// Numbers an instruction that is of no step.
    pub(super) fn take_uncounted(&mut self) -> (u64, u64) {
        self.take(FORGOTTEN)
    }

    /// How many numbers are unresolved.
    pub(super) fn unresolved(&self) -> u64 {
        self.next - self.settled - u64::from(self.resolved.count_ones())
    }

    /// The outcome of a number is known.
    pub(super) fn resolve(&mut self, number: u64) -> Resolved {
        let Some(ahead) = number.checked_sub(self.settled).filter(|_| number < self.next) else {
            return Resolved::Known;
        };
        let bit = 1 << ahead;
        if self.resolved & bit != 0 {
            return Resolved::Known;
        }
        self.resolved |= bit;
        let run = self.resolved.trailing_ones();
        self.settled += u64::from(run);
        self.resolved = self.resolved.checked_shr(run).unwrap_or(0);
        match self.indices[slot(number)] {
            FORGOTTEN => Resolved::Earlier,
            index => Resolved::Index(index),
        }
    }

    /// A new step begins: what is unresolved is of an earlier one.
    pub(super) fn forget(&mut self) {
        self.indices = [FORGOTTEN; SLOTS];
    }
}

fn slot(number: u64) -> usize {
    number as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_holds_as_many_as_allowed_from_the_lowest_unresolved_one() {
        let mut window = Window::new(9);
        for index in 0..32 {
            assert!(window.has_room());
            assert_eq!(window.take(100 + index), (u64::from(index) + 1, 1));
        }
        assert!(!window.has_room());
        assert_eq!(window.resolve(2), Resolved::Index(101));
        assert!(!window.has_room(), "number 1 still holds the window");
        assert_eq!(window.resolve(2), Resolved::Known);
        assert_eq!(window.resolve(1), Resolved::Index(100));
        assert!(window.has_room());
        assert_eq!(window.take(7), (33, 3));
        assert_eq!(window.take(8), (34, 3));
        assert!(!window.has_room() && !window.is_quiet());
        for number in (3..=34).rev() {
            assert!(matches!(window.resolve(number), Resolved::Index(_)));
        }
        assert!(window.is_quiet() && window.has_room());
        assert_eq!(window.resolve(35), Resolved::Known, "never sent");
        assert_eq!(window.resolve(1), Resolved::Known);
    }

    #[test]
    fn a_server_may_allow_fewer() {
        let mut window = Window::new(1);
        window.set_limit(2);
        assert_eq!([0, 1].map(|index| window.take(index).0), [1, 2]);
        assert!(!window.has_room());
        window.set_limit(1_000);
        assert!(window.has_room());
    }

    #[test]
    fn numbers_of_an_earlier_step_make_room_and_nothing_else() {
        let mut window = Window::new(1);
        assert_eq!([5, 6].map(|index| window.take(index).0), [1, 2]);
        window.forget();
        window.take(0);
        assert_eq!(window.resolve(1), Resolved::Earlier);
        assert_eq!(window.resolve(3), Resolved::Index(0));
        assert!(!window.is_quiet());
    }
}
