//! The rows of the LMDB file: keys and values, byte by byte (`docs/FORMAT.md`).
//!
//! Keys sort by meaning: text first, integers big-endian. Values are MessagePack maps with text
//! keys, so that any language reads them with a plain MessagePack library. A reader passes over
//! keys it does not know: that is how values grow.

mod by_time;
mod client;
mod dead_letter;
mod document;
mod history;
mod meta;

pub use by_time::{ByTimeRow, by_time_key, parse_by_time_key};
pub use client::{MarkRow, client_key, decode_mark, encode_mark, parse_client_key};
pub use dead_letter::{DeadLetterKey, DeadLetterRow};
pub use document::{DocumentHead, DocumentRow};
pub use history::{HistoryKey, HistoryRow, add_whole_state, history_key, tells_whole_state};
pub use meta::{
    CHECKPOINT_PREFIX, CheckpointRow, FORMAT_KEY, FORMAT_VERSION, FormatRow, checkpoint_key, checkpoint_sequence,
};

use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::msgpack::{DecodeError, Reader, Token, Write, decode};

/// Ends the text of a composite key. Ids have no control characters, so it sorts before every
/// character that could follow and no id is taken for the beginning of another.
const KEY_END: u8 = 0;

/// Hands each pair of a map to `field`, which reads the value and returns true, or leaves an
/// unknown one alone.
fn read_fields<'a>(
    bytes: &'a [u8],
    mut field: impl FnMut(&str, &mut Reader<'a>) -> Result<bool, DecodeError>,
) -> Result<(), DecodeError> {
    decode(bytes, |r| {
        let Token::Map(n) = r.token()? else { return Err(DecodeError::Expected("a map")) };
        for _ in 0..n {
            let key = r.str()?;
            if !field(key, r)? {
                r.skip()?;
            }
        }
        Ok(())
    })
}

fn present<T>(field: Option<T>, name: &'static str) -> Result<T, DecodeError> {
    field.ok_or(DecodeError::Expected(name))
}

fn number(out: &mut Vec<u8>, key: &str, n: u64) {
    out.str(key);
    out.u64(n);
}

fn text(out: &mut Vec<u8>, key: &str, value: &str) {
    out.str(key);
    out.str(value);
}

fn client_id(r: &mut Reader<'_>) -> Result<ClientId, DecodeError> {
    ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a client id"))
}

fn document_id(id: &str) -> Result<DocumentId, DecodeError> {
    DocumentId::new(id).map_err(|_| DecodeError::OutOfRange("a document id"))
}

fn utf8(bytes: &[u8]) -> Result<&str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|_| DecodeError::InvalidUtf8)
}
