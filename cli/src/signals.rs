//! Ctrl-C and SIGTERM: the first asks for an orderly stop, the second ends at once.

use crate::exit::Failure;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Both signals, caught from the moment this exists.
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// Catches the signals from now on.
    ///
    /// # Errors
    /// If the operating system does not let us.
    pub(crate) fn catch() -> Result<Signals, Failure> {
        let catch = |kind| signal(kind).map_err(|error| Failure::failed(format_args!("cannot catch signals: {error}")));
        Ok(Signals { interrupt: catch(SignalKind::interrupt())?, terminate: catch(SignalKind::terminate())? })
    }

    /// Waits for a signal and gives its exit code.
    ///
    /// # Cancel safety
    /// A signal that comes while nobody waits is seen by the next wait.
    pub(crate) async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 130,
            _ = self.terminate.recv() => 143,
        }
    }

    /// From now on a signal ends the process at once.
    pub(crate) fn next_one_exits(mut self) {
        tokio::spawn(async move {
            let code = self.next().await;
            eprintln!("stopped at once; what was in flight is resent or replayed at the next start");
            std::process::exit(code);
        });
    }
}
