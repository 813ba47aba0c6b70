//! The device wire: one frame grammar on every transport (`docs/PROTOCOL.md`).
//!
//! A frame is a 4-byte big-endian length and so many bytes of MessagePack: an array whose first
//! element is an integer tag. [`Deframer`] cuts a byte stream into payloads; [`FromClient`] and
//! [`FromServer`] are what the payloads say.

mod client;
mod server;

pub use client::{Attempt, FromClient, Hello, Instruct, Watch, WatchMode};
pub use server::{FromServer, Limits, Snapshot, Update, Welcome, encode_document};

use crate::msgpack::{DecodeError, Reader};

/// The protocol version spoken, and the ALPN name on TLS and QUIC.
pub const PROTOCOL_VERSION: u64 = 1;

/// ALPN protocol name.
pub const ALPN: &[u8] = b"fieldstream/1";

/// A frame that breaks the rules of framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of {length_bytes} bytes, more than {max_bytes}")]
pub struct FrameTooLarge {
    /// Length the frame claims.
    pub length_bytes: usize,
    /// Length allowed at this point.
    pub max_bytes: usize,
}

/// Cuts a byte stream into frame payloads. Holds only bytes that have arrived: a claimed length
/// reserves nothing.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: Vec<u8>,
    read: usize,
}

impl Deframer {
    /// Takes bytes as they arrive.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.read > 0 {
            self.buffer.drain(..self.read);
            self.read = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole payload, `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`FrameTooLarge`] if the next frame claims more than `max_bytes`.
    pub fn next(&mut self, max_bytes: usize) -> Result<Option<&[u8]>, FrameTooLarge> {
        let waiting = &self.buffer[self.read..];
        let Some((head, rest)) = waiting.split_first_chunk::<4>() else { return Ok(None) };
        let length_bytes = u32::from_be_bytes(*head) as usize;
        if length_bytes > max_bytes {
            return Err(FrameTooLarge { length_bytes, max_bytes });
        }
        if rest.len() < length_bytes {
            return Ok(None);
        }
        let start = self.read + 4;
        self.read = start + length_bytes;
        Ok(Some(&self.buffer[start..self.read]))
    }

    /// Whether a frame has begun that is not whole yet.
    pub fn is_partial(&self) -> bool {
        self.read < self.buffer.len()
    }

    /// Gives unused memory back: after a burst, an idle connection holds none.
    pub fn shrink(&mut self) {
        if self.read == self.buffer.len() {
            self.buffer = Vec::new();
            self.read = 0;
        }
    }
}

/// Starts a frame in `out`: leaves room for the length. Returns where the frame begins.
pub(crate) fn begin(out: &mut Vec<u8>) -> usize {
    out.extend_from_slice(&[0; 4]);
    out.len()
}

/// Ends the frame that began at `start`: fills in the length.
pub(crate) fn end(out: &mut [u8], start: usize) {
    let length = (out.len() - start) as u32;
    if let Some(head) = start.checked_sub(4).and_then(|head| out.get_mut(head..start)) {
        head.copy_from_slice(&length.to_be_bytes());
    }
}

/// Why a payload is no frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A tag the sender may not use, or of a newer protocol.
    #[error("unknown frame tag {0}")]
    UnknownTag(u64),
    /// Not of the documented form.
    #[error("malformed frame: {0}")]
    Malformed(#[from] DecodeError),
}

/// Decodes a payload whose tag is one of `tags`. `read` gets the tag and a reader behind it, and
/// returns how many elements it used, the tag included; those of a newer version are passed over.
fn decode_frame<'a, T>(
    payload: &'a [u8],
    tags: std::ops::RangeInclusive<u64>,
    read: impl FnOnce(u64, &mut Reader<'a>) -> Result<(T, usize), DecodeError>,
) -> Result<T, FrameError> {
    let mut reader = Reader::new(payload);
    let elements = reader.array()?;
    if elements == 0 {
        return Err(DecodeError::Expected("a tag").into());
    }
    let tag = reader.u64()?;
    if !tags.contains(&tag) {
        return Err(FrameError::UnknownTag(tag));
    }
    let (frame, used) = read(tag, &mut reader)?;
    for _ in 0..elements.checked_sub(used).ok_or(DecodeError::Expected("a longer frame"))? {
        reader.skip()?;
    }
    reader.finish()?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_frames(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..8),
            chunk in 1usize..20,
        ) {
            let mut bytes = Vec::new();
            for p in &payloads {
                let start = begin(&mut bytes);
                bytes.extend_from_slice(p);
                end(&mut bytes, start);
            }
            let mut deframer = Deframer::default();
            let mut got = Vec::new();
            for piece in bytes.chunks(chunk) {
                deframer.push(piece);
                while let Some(p) = deframer.next(100).unwrap() {
                    got.push(p.to_vec());
                }
            }
            prop_assert!(!deframer.is_partial());
            prop_assert_eq!(got, payloads);
        }

        #[test]
        fn no_bytes_can_hurt_a_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = FromClient::decode(&bytes);
            let _ = FromServer::decode(&bytes);
            let _ = crate::event::EventBatch::decode(&bytes);
            let _ = crate::event::Event::decode(&bytes);
            let _ = crate::record::Record::decode(&bytes);
            let _ = crate::read::Request::decode(&bytes);
            let _ = crate::read::Answer::decode(&bytes);
        }
    }

    #[test]
    fn a_claimed_length_over_the_limit_is_refused_at_once() {
        let mut deframer = Deframer::default();
        deframer.push(&[0xff, 0xff, 0xff, 0xff]);
        assert!(deframer.next(1 << 20).is_err());
    }
}
