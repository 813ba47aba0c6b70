//! One client's state: its connection's phase, what it has to send, what it holds of its document.

use super::window::Window;

/// Where a client's connection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// To be connected.
    Idle,
    /// The transport is being connected.
    Opening,
    /// HELLO was sent; WELCOME, the verdict on the watch, and a snapshot if it says so, must come.
    Greeting { welcomed: bool, watching: bool },
    /// It may send.
    Ready,
    /// The connection is lost.
    Dead,
}

/// A third of this is the silence after which a client pings.
const KEEPALIVE_NS: u64 = 90_000_000_000;

/// One client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) phase: Phase,
    pub(super) window: Window,
    pub(super) outbox: Outbox,
    /// The beginning of a frame whose rest has not come.
    pub(super) partial: Vec<u8>,
    /// Instructions of the step that are due, and that were sent.
    pub(super) due: u32,
    pub(super) sent: u32,
    /// The number of its first instruction of the step.
    pub(super) first_number: u64,
    /// The revision of its document that it has seen.
    pub(super) revision: u64,
    pub(super) paused_until_ns: Option<u64>,
    pub(super) keepalive_ns: u64,
    pub(super) heard_ns: u64,
    pub(super) sent_ns: u64,
    /// It is on the list of those that may have something to send.
    pub(super) is_listed: bool,
}

impl Client {
    pub(super) fn new(epoch: u64) -> Client {
        Client {
            phase: Phase::Idle,
            window: Window::new(epoch),
            outbox: Outbox::default(),
            partial: Vec::new(),
            due: 0,
            sent: 0,
            first_number: 1,
            revision: 0,
            paused_until_ns: None,
            keepalive_ns: KEEPALIVE_NS,
            heard_ns: 0,
            sent_ns: 0,
            is_listed: false,
        }
    }

    /// The same client on a new connection: in a new epoch, so that nothing of the old one counts.
    pub(super) fn reborn(&self) -> Client {
        Client { is_listed: self.is_listed, ..Client::new(self.window.epoch() + 1) }
    }

    /// A new step begins.
    pub(super) fn begin(&mut self) {
        (self.due, self.sent, self.first_number) = (0, 0, self.window.next());
        self.window.forget();
    }

    /// Whether it has an instruction to send and may.
    pub(super) fn may_send(&self, now_ns: u64) -> bool {
        self.sent < self.due
            && self.phase == Phase::Ready
            && self.window.has_room()
            && self.paused_until_ns.is_none_or(|until_ns| now_ns >= until_ns)
    }

    /// Whether a sign of life must be asked for.
    pub(super) fn must_ping(&self, now_ns: u64) -> bool {
        let quiet_ns = now_ns.saturating_sub(self.sent_ns.min(self.heard_ns));
        // The last one may still be under way.
        let asked_ns = now_ns.saturating_sub(self.sent_ns);
        self.phase == Phase::Ready && quiet_ns > self.keepalive_ns / 3 && asked_ns > self.keepalive_ns / 6
    }

    /// Whether the server has been silent for so long that it is not there.
    pub(super) fn is_silent(&self, now_ns: u64) -> bool {
        let since_ns = self.heard_ns.max(self.paused_until_ns.unwrap_or(0));
        self.phase == Phase::Ready && now_ns.saturating_sub(since_ns) > self.keepalive_ns
    }
}

/// Bytes to send.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// Frames are appended here.
    pub(super) bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    /// What is still to be written.
    pub(super) fn pending(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So much was written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        if self.written == self.bytes.len() {
            self.bytes.clear();
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_of_life_are_asked_for_in_time_and_silence_ends_it() {
        let mut client = Client::new(1);
        client.phase = Phase::Ready;
        (client.keepalive_ns, client.heard_ns, client.sent_ns) = (90, 100, 100);
        assert!(!client.must_ping(130) && client.must_ping(131));
        client.sent_ns = 131;
        assert!(!client.must_ping(140), "it was just asked");
        assert!(client.must_ping(150), "nothing was heard, whatever was sent");
        assert!(!client.is_silent(190) && client.is_silent(191));
        client.paused_until_ns = Some(150);
        assert!(!client.is_silent(240) && client.is_silent(241), "who pauses us need not answer");
    }

    #[test]
    fn an_outbox_goes_on_where_the_last_write_ended() {
        let mut outbox = Outbox::default();
        outbox.bytes.extend_from_slice(b"abc");
        outbox.wrote(2);
        assert_eq!(outbox.pending(), b"c");
        outbox.bytes.extend_from_slice(b"de");
        assert_eq!(outbox.pending(), b"cde");
        outbox.wrote(3);
        assert!(outbox.pending().is_empty() && outbox.bytes.is_empty());
    }
}
