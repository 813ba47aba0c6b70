//! What is to be written to the state file, and what is known to be in it. No file here: bytes go
//! out, and the news that they are durable comes in.
//!
//! The file is a sequence of records `length u32, xxh3 u32, payload`, big-endian; the payload is a
//! MessagePack array: `[1, version, client id, epoch, next]` first, then `[2, number, ack,
//! document, if_revision, operation]` for a numbered instruction and `[3, number]` for a resolved one.

use super::numbers::{Instruction, Restored};
use fieldstream_shared::ids::{ClientId, DocumentId};
use fieldstream_shared::msgpack::{DecodeError, Reader, Write, decode};
use fieldstream_shared::outcome::AckLevel;

const VERSION: u64 = 1;

/// A file is written anew when so many bytes were appended to it, or twice what it must hold.
const APPENDED_BYTES_MAX: usize = 1024 * 1024;

/// Records not yet written, and what the file holds for certain.
#[derive(Debug)]
pub(crate) struct Journal {
    buffer: Vec<u8>,
    appended_bytes: usize,
    rewrite_bytes: usize,
    /// Counts the times everything started over, so that a write from before is not mistaken for
    /// one of after.
    generation: u64,
    rewrite: bool,
    next: u64,
    settled: u64,
}

/// One write to the file.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Records, without the first one if `rewrite`.
    pub(crate) records: Vec<u8>,
    /// The records are all there is: they replace the file's content.
    pub(crate) rewrite: bool,
    /// Epoch and next number, for the first record.
    pub(crate) epoch: u64,
    pub(crate) next: u64,
    settled: u64,
    generation: u64,
}

impl Journal {
    /// A file that was just opened and holds everything below `next`.
    pub(crate) fn new(next: u64, settled: u64) -> Journal {
        Journal {
            buffer: Vec::new(),
            appended_bytes: 0,
            rewrite_bytes: APPENDED_BYTES_MAX,
            generation: 0,
            rewrite: false,
            next,
            settled,
        }
    }

    /// Numbers below this are in the file.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// The lowest number the file does not know as resolved.
    pub(crate) fn settled(&self) -> u64 {
        self.settled
    }

    pub(crate) fn instruction(&mut self, number: u64, instruction: &Instruction) {
        write_instruction(number, instruction, &mut self.buffer);
    }

    pub(crate) fn resolved(&mut self, number: u64) {
        write_record(&mut self.buffer, |out| {
            out.array(2);
            out.u64(3);
            out.u64(number);
        });
    }

    /// A new epoch: the whole file is written anew, and until then it holds nothing that counts.
    pub(crate) fn start_over(&mut self) {
        self.buffer.clear();
        self.rewrite = true;
        self.generation += 1;
        (self.next, self.settled) = (1, 1);
    }

    /// The next write, `None` if there is nothing new. One at a time.
    pub(crate) fn take<'a>(
        &mut self,
        epoch: u64,
        next: u64,
        settled: u64,
        open: impl Iterator<Item = (u64, &'a Instruction)>,
    ) -> Option<Batch> {
        if self.buffer.is_empty() && !self.rewrite {
            return None;
        }
        let mut records = std::mem::take(&mut self.buffer);
        let rewrite = std::mem::take(&mut self.rewrite) || self.appended_bytes + records.len() > self.rewrite_bytes;
        if rewrite {
            records.clear();
            open.for_each(|(number, instruction)| write_instruction(number, instruction, &mut records));
            self.appended_bytes = 0;
            self.rewrite_bytes = APPENDED_BYTES_MAX.max(2 * records.len());
        } else {
            self.appended_bytes += records.len();
        }
        Some(Batch { records, rewrite, epoch, next, settled, generation: self.generation })
    }

    /// A write is durable.
    pub(crate) fn written(&mut self, batch: &Batch) {
        if batch.generation == self.generation {
            self.next = batch.next;
            self.settled = batch.settled;
        }
    }
}

/// Appends a record: length, checksum, payload.
fn write_record(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    write(out);
    let payload = &out[start + 8..];
    let (length, sum) = (payload.len() as u32, checksum(payload));
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&sum.to_be_bytes());
}

fn checksum(payload: &[u8]) -> u32 {
    xxhash_rust::xxh3::xxh3_64(payload) as u32
}

/// Appends the record a file begins with.
pub(crate) fn write_head(client: &ClientId, epoch: u64, next: u64, out: &mut Vec<u8>) {
    write_record(out, |out| {
        out.array(5);
        out.u64(1);
        out.u64(VERSION);
        out.str(client);
        out.u64(epoch);
        out.u64(next);
    });
}

/// Appends a numbered instruction.
pub(crate) fn write_instruction(number: u64, instruction: &Instruction, out: &mut Vec<u8>) {
    write_record(out, |out| {
        out.array(6);
        out.u64(2);
        out.u64(number);
        out.u64(instruction.ack as u64);
        out.str(&instruction.document);
        out.optional(instruction.if_revision, |out, n| out.u64(n));
        out.bin(&instruction.operation);
    });
}

/// Reads a file's content. Records behind a torn one were never durable, so nothing of them was
/// ever sent: they are left out. Also returns how many bytes were good.
///
/// # Errors
/// [`DecodeError`] if the file does not begin as such a file must.
pub(crate) fn read(bytes: &[u8]) -> Result<(ClientId, Restored, usize), DecodeError> {
    let (head, mut rest) = next_record(bytes).ok_or(DecodeError::Truncated)?;
    let (client, mut restored) = decode(head, read_head)?;
    while let Some((payload, behind)) = next_record(rest) {
        if decode(payload, |r| read_entry(r, &mut restored)).is_err() {
            break;
        }
        rest = behind;
    }
    Ok((client, restored, bytes.len() - rest.len()))
}

fn next_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let (payload, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    (checksum(payload) == u32::from_be_bytes(*sum)).then_some((payload, rest))
}

fn read_head(r: &mut Reader<'_>) -> Result<(ClientId, Restored), DecodeError> {
    r.record(5, |r| {
        if r.u64()? != 1 {
            return Err(DecodeError::Expected("a head record"));
        }
        match r.u64()? {
            VERSION => {}
            other => return Err(DecodeError::UnknownVersion(other)),
        }
        let client = ClientId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("the client id"))?;
        Ok((client, Restored { epoch: r.u64()?, next: r.u64()?, ..Restored::default() }))
    })
}

fn read_entry(r: &mut Reader<'_>, restored: &mut Restored) -> Result<(), DecodeError> {
    let elements = r.array()?;
    match (if elements == 0 { 0 } else { r.u64()? }, elements) {
        (2, 6) => {
            let number = r.u64()?;
            let ack = AckLevel::from_u64(r.u64()?)?;
            let document = DocumentId::new(r.str()?).map_err(|_| DecodeError::OutOfRange("a document id"))?;
            let if_revision = r.optional(Reader::u64)?;
            let operation = r.bin()?.into();
            restored.next = restored.next.max(number.saturating_add(1));
            restored.unresolved.insert(number, Instruction { document, if_revision, operation, ack, traced: false });
        }
        (3, 2) => {
            restored.unresolved.remove(&r.u64()?);
        }
        _ => return Err(DecodeError::Expected("a record")),
    }
    Ok(())
}
