//! What moves the bytes of a [`Fleet`].

use super::fleet::Fleet;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The clients, shared by everything on the one thread.
pub(super) type SharedFleet = Rc<RefCell<Fleet>>;

/// At the latest after so much the shell asks whether it is to go on.
pub(super) const TURN_NS: u64 = 5_000_000;

/// The system sleeps up to this longer than it was asked to.
const NAP_NS_MIN: u64 = 50_000;

/// The program's clock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn new() -> Clock {
        Clock(Instant::now())
    }

    /// Nanoseconds since it was made.
    pub(super) fn now_ns(self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Ends a turn not before this: all that arrives meanwhile is taken together.
    pub(super) fn nap(self, until_ns: u64) {
        let nap_ns = until_ns.saturating_sub(self.now_ns());
        if nap_ns > NAP_NS_MIN {
            std::thread::sleep(Duration::from_nanos(nap_ns));
        }
    }
}

/// Connections of all clients, of one transport.
pub(super) trait Shell {
    /// Connects whom the fleet wants connected and moves bytes until `done`, which is asked in every
    /// turn.
    ///
    /// # Errors
    /// What makes all connections useless. That of a single one is told to the fleet.
    fn drive(&mut self, fleet: &SharedFleet, done: &mut dyn FnMut(&Fleet, u64) -> bool) -> io::Result<()>;

    /// Drops a client's connection.
    fn close(&mut self, client: usize);

    /// Ends all connections so that the server learns of it.
    fn end(&mut self);
}
