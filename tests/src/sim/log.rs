//! A simulated stream and a reader of it that trusts nothing.

use bytes::Bytes;
use fieldstream_shared::event::message_hash;

/// The stream takes no more: `discard: new`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Full;

/// Why a reader stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damage {
    /// A message is missing in the middle.
    Hole,
    /// The stream begins behind the reader.
    Outrun,
    /// The stream ends before the reader, or its last message is another one.
    Diverged,
}

/// A stream: contiguous sequences from 1, purged from the front.
#[derive(Debug, Default, Clone)]
pub struct Stream {
    /// Sequence of the first slot.
    base: u64,
    slots: Vec<Option<Bytes>>,
    bytes: usize,
    bytes_max: usize,
}

impl Stream {
    /// A stream that takes so many bytes; 0 for no bound.
    pub fn bounded(bytes_max: usize) -> Stream {
        Stream { bytes_max, ..Stream::default() }
    }

    /// Stores a message and returns its sequence.
    ///
    /// # Errors
    /// [`Full`].
    pub fn append(&mut self, message: Bytes) -> Result<u64, Full> {
        if self.bytes_max > 0 && self.bytes + message.len() > self.bytes_max {
            return Err(Full);
        }
        self.bytes += message.len();
        self.slots.push(Some(message));
        Ok(self.last())
    }

    /// Sequence of the last message there was.
    pub fn last(&self) -> u64 {
        self.base + self.slots.len() as u64
    }

    /// Sequence of the first message there is; one behind the last if there is none.
    pub fn first(&self) -> u64 {
        self.base + 1
    }

    /// A message.
    pub fn get(&self, sequence: u64) -> Option<&Bytes> {
        let at = sequence.checked_sub(self.base + 1)?;
        self.slots.get(usize::try_from(at).ok()?)?.as_ref()
    }

    /// Removes everything below a sequence; beyond the end, the next message gets that sequence.
    pub fn purge(&mut self, below: u64) {
        while self.base + 1 < below && !self.slots.is_empty() {
            let gone = self.slots.remove(0);
            self.bytes -= gone.map_or(0, |message| message.len());
            self.base += 1;
        }
        if self.slots.is_empty() && self.base + 1 < below {
            self.base = below - 1;
        }
    }

    /// Damage: takes one message out.
    pub fn remove(&mut self, sequence: u64) {
        if let Some(at) = sequence.checked_sub(self.base + 1).and_then(|at| usize::try_from(at).ok())
            && let Some(slot) = self.slots.get_mut(at)
        {
            self.bytes -= slot.take().map_or(0, |message| message.len());
        }
    }

    /// Damage: the stream ends behind this message, whatever followed.
    pub fn cut(&mut self, last: u64) {
        let keep = usize::try_from(last.saturating_sub(self.base)).unwrap_or(usize::MAX);
        self.slots.truncate(keep);
        self.bytes = self.slots.iter().flatten().map(Bytes::len).sum();
    }
}

/// A position in a stream, and what was there.
#[derive(Debug, Default, Clone, Copy)]
pub struct Reader {
    /// The last message read.
    pub sequence: u64,
    hash: Option<u64>,
}

impl Reader {
    /// A reader behind a message, whose hash may be known.
    pub fn behind(sequence: u64, hash: Option<u64>) -> Reader {
        Reader { sequence, hash }
    }

    /// The next message, if there is one.
    ///
    /// # Errors
    /// [`Damage`]: reading on would lose or repeat something.
    pub fn next(&mut self, stream: &Stream) -> Result<Option<(u64, Bytes)>, Damage> {
        if stream.last() < self.sequence {
            return Err(Damage::Diverged);
        }
        if stream.first() > self.sequence + 1 {
            return Err(Damage::Outrun);
        }
        if let (Some(known), Some(last)) = (self.hash, stream.get(self.sequence))
            && message_hash(last) != known
        {
            return Err(Damage::Diverged);
        }
        if stream.last() == self.sequence {
            return Ok(None);
        }
        let message = stream.get(self.sequence + 1).ok_or(Damage::Hole)?.clone();
        *self = Reader { sequence: self.sequence + 1, hash: Some(message_hash(&message)) };
        Ok(Some((self.sequence, message)))
    }
}
