//! Documents that arrive in pieces.

use fieldstream_shared::change::Version;
use fieldstream_shared::document::{Body, Document};
use fieldstream_shared::frame::Snapshot;
use fieldstream_shared::limits::DOCUMENT_BYTES_MAX;

/// Puts pieces together. Holds only bytes that arrived: the claimed total reserves nothing.
#[derive(Debug, Default)]
pub(crate) struct Assembly {
    version: Option<Version>,
    bytes: Vec<u8>,
}

/// What a piece led to.
#[derive(Debug, PartialEq)]
pub(crate) enum Assembled {
    /// More pieces are needed.
    Partial,
    /// The document is whole and has the hash it was announced with.
    Whole(Document, Version),
    /// The pieces do not fit, or the whole is not what was announced.
    Misfit,
}

impl Assembly {
    /// Takes a piece. The first piece of a document starts over.
    pub(crate) fn take(&mut self, piece: &Snapshot<'_>) -> Assembled {
        if piece.offset == 0 {
            *self = Assembly { version: Some(piece.version), bytes: Vec::new() };
        }
        let end = self.bytes.len() + piece.piece.len();
        let fits = self.version == Some(piece.version)
            && piece.offset == self.bytes.len() as u64
            && end as u64 <= piece.total_bytes
            && end <= DOCUMENT_BYTES_MAX;
        if !fits {
            *self = Assembly::default();
            return Assembled::Misfit;
        }
        self.bytes.extend_from_slice(piece.piece);
        if (end as u64) < piece.total_bytes {
            // A server that sends empty pieces for ever would never get further.
            return if piece.piece.is_empty() { Assembled::Misfit } else { Assembled::Partial };
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.version = None;
        match Body::decode(piece.kind, &bytes) {
            Ok(body) if body.hash() == piece.version.state_hash => {
                let Version { revision, time_us, .. } = piece.version;
                Assembled::Whole(Document { revision, time_us, body }, piece.version)
            }
            _ => Assembled::Misfit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::document::Kind;

    fn pieces(text: &str, chunk: usize, hash: u64) -> Vec<Assembled> {
        let version = Version { revision: 3, state_hash: hash, time_us: 9 };
        let mut assembly = Assembly::default();
        let total_bytes = text.len() as u64;
        let chunks = text.as_bytes().chunks(chunk).enumerate();
        chunks
            .map(|(i, piece)| {
                let offset = (i * chunk) as u64;
                assembly.take(&Snapshot { document: "d", version, kind: Kind::Text, total_bytes, offset, piece })
            })
            .collect()
    }

    #[test]
    fn pieces_become_the_document_or_nothing() {
        let body = Body::Text("häppchenweise".into());
        let document = Document { revision: 3, time_us: 9, body: body.clone() };
        let version = Version { revision: 3, state_hash: body.hash(), time_us: 9 };
        let got = pieces("häppchenweise", 2, body.hash());
        assert!(got[..6].iter().all(|a| *a == Assembled::Partial), "a piece may end inside a character");
        assert_eq!(got[6], Assembled::Whole(document, version));
        assert_eq!(pieces("häppchenweise", 99, body.hash() + 1), [Assembled::Misfit]);
    }

    #[test]
    fn a_piece_that_does_not_follow_is_a_misfit() {
        let version = Version { revision: 3, state_hash: 0, time_us: 9 };
        let piece = |offset, total_bytes, piece| Snapshot {
            document: "d",
            version,
            kind: Kind::Text,
            total_bytes,
            offset,
            piece,
        };
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(&piece(2, 4, b"xx")), Assembled::Misfit, "no first piece");
        assert_eq!(assembly.take(&piece(0, 4, b"xx")), Assembled::Partial);
        assert_eq!(assembly.take(&piece(3, 4, b"x")), Assembled::Misfit, "a gap");
        assert_eq!(assembly.take(&piece(0, 1, b"xx")), Assembled::Misfit, "more than announced");
        assert_eq!(assembly.take(&piece(0, u64::MAX, b"")), Assembled::Misfit, "no progress");
    }
}
