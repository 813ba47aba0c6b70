//! The map of a file can grow only while no transaction of this process is open: those that begin wait
//! meanwhile.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    /// Transactions that are open.
    open: usize,
    /// Whether the map is about to grow.
    is_closed: bool,
}

/// Counts the transactions of one file.
#[derive(Debug, Clone, Default)]
pub(super) struct Gate(Arc<(Mutex<State>, Condvar)>);

/// Held while a transaction is open.
#[derive(Debug)]
pub(super) struct Pass(Gate);

impl Gate {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.0.1.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a transaction begin.
    pub(super) fn enter(&self) -> Pass {
        let mut state = self.lock();
        while state.is_closed {
            state = self.wait(state);
        }
        state.open += 1;
        Pass(self.clone())
    }

    /// Does something once no transaction is open, and lets none begin until it is done. The caller must
    /// hold no pass.
    pub(super) fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut state = self.lock();
        while state.is_closed {
            state = self.wait(state);
        }
        state.is_closed = true;
        while state.open > 0 {
            state = self.wait(state);
        }
        let done = work();
        state.is_closed = false;
        self.0.1.notify_all();
        done
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
        self.0.0.1.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    #[test]
    fn it_is_alone_and_everybody_goes_on_behind_it() {
        let (gate, is_alone) = (Gate::default(), AtomicBool::new(false));
        let (first, second) = (gate.enter(), gate.enter());
        std::thread::scope(|threads| {
            threads.spawn(|| gate.alone(|| is_alone.store(true, Ordering::SeqCst)));
            while !gate.lock().is_closed {
                std::thread::yield_now();
            }
            let late = threads.spawn(|| {
                let _pass = gate.enter();
                is_alone.load(Ordering::SeqCst)
            });
            drop(first);
            std::thread::sleep(Duration::from_millis(20));
            assert!(!is_alone.load(Ordering::SeqCst), "one is still open");
            drop(second);
            assert!(late.join().unwrap(), "the late one had to wait");
        });
        assert_eq!(gate.lock().open, 0);
    }
}
