//! What is written: texts that all differ and say of which instruction they are, so that a watcher
//! can compare what came with what was sent.

use super::args::HEAD_BYTES;
use fieldstream_shared::msgpack::{Reader, Write as _};

/// Random text to cut payloads out of.
const POOL_BYTES: usize = 64 * 1024;

/// Of ASCII, so that any cut is text.
const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// An instruction of this run: which step, which of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) step: u16,
    pub(super) index: u32,
}

/// Makes payloads and knows them again.
#[derive(Debug)]
pub(super) struct Payloads {
    size_bytes: usize,
    pool: Vec<u8>,
    /// What stands before the text in an operation `[1, text]`.
    operation_head: Vec<u8>,
}

impl Payloads {
    /// Payloads of so many bytes; `random` gives the pool its text.
    pub(super) fn new(size_bytes: usize, mut random: impl FnMut() -> u8) -> Payloads {
        let pool = (0..POOL_BYTES + size_bytes).map(|_| ALPHABET[usize::from(random()) % ALPHABET.len()]).collect();
        let mut operation_head = Vec::new();
        operation_head.array(2);
        operation_head.u64(1);
        operation_head.str(&"x".repeat(size_bytes));
        operation_head.truncate(operation_head.len() - size_bytes);
        Payloads { size_bytes, pool, operation_head }
    }

    /// Appends the operation that puts an instruction's text.
    pub(super) fn write_operation(&self, label: Label, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.operation_head);
        out.extend_from_slice(&head(label));
        out.extend_from_slice(self.body(label));
    }

    /// Which instruction a change is of; `None` if it is not exactly what one of them makes.
    pub(super) fn recognise(&self, change: &[u8]) -> Option<Label> {
        let mut reader = Reader::new(change);
        let heads = (reader.array().ok()?, reader.array().ok()?, reader.u64().ok()?);
        let text = reader.str().ok()?;
        let label = self.recognise_text(text.as_bytes())?;
        (heads == (1, 2, 1) && reader.rest().is_empty()).then_some(label)
    }

    /// The same of a document's text.
    pub(super) fn recognise_text(&self, text: &[u8]) -> Option<Label> {
        let (start, body) = text.split_first_chunk::<HEAD_BYTES>()?;
        let label = read_head(start)?;
        (text.len() == self.size_bytes && body == self.body(label)).then_some(label)
    }

    fn body(&self, label: Label) -> &[u8] {
        let mixed = (u64::from(label.index) << 16 | u64::from(label.step)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let start = (mixed >> 48) as usize % POOL_BYTES;
        &self.pool[start..start + self.size_bytes - HEAD_BYTES]
    }
}

/// Step and index, in hexadecimal digits.
fn head(label: Label) -> [u8; HEAD_BYTES] {
    let mut digits = [0; HEAD_BYTES];
    let number = u64::from(label.step) << 32 | u64::from(label.index);
    for (nth, digit) in digits.iter_mut().enumerate() {
        *digit = b"0123456789abcdef"[(number >> (4 * (HEAD_BYTES - 1 - nth)) & 15) as usize];
    }
    digits
}

fn read_head(digits: &[u8; HEAD_BYTES]) -> Option<Label> {
    let mut number: u64 = 0;
    for digit in digits {
        number = number << 4 | u64::from((*digit as char).to_digit(16)?);
    }
    let label = Label { step: (number >> 32) as u16, index: number as u32 };
    // Digits are also read in capitals, and a step has four of them only.
    (head(label) == *digits).then_some(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payloads(size_bytes: usize) -> Payloads {
        let mut state = 1_u32;
        Payloads::new(size_bytes, move || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
    }

    fn change(payloads: &Payloads, label: Label) -> Vec<u8> {
        let mut change = vec![0x91];
        payloads.write_operation(label, &mut change);
        change
    }

    #[test]
    fn payloads_have_the_size_asked_for_and_are_recognised() {
        for size_bytes in [HEAD_BYTES, 31, 32, 255, 256, 500, 70_000] {
            let payloads = payloads(size_bytes);
            for label in [
                Label { step: 0, index: 0 },
                Label { step: 7, index: 123_456 },
                Label { step: u16::MAX, index: u32::MAX },
            ] {
                let change = change(&payloads, label);
                assert_eq!(payloads.recognise(&change), Some(label));
                let operation = fieldstream_shared::msgpack::decode(&change[1..], |r| {
                    fieldstream_shared::instruction::Operation::read(r)
                });
                let Ok(fieldstream_shared::instruction::Operation::PutText(text)) = operation else {
                    panic!("{operation:?}")
                };
                assert_eq!(text.len(), size_bytes);
                assert_eq!(payloads.recognise_text(text.as_bytes()), Some(label));
            }
        }
    }

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let payloads = payloads(500);
        let label = Label { step: 3, index: 77 };
        let right = change(&payloads, label);
        for at in 0..right.len() {
            for bit in 0..8 {
                let mut wrong = right.clone();
                wrong[at] ^= 1 << bit;
                // A flipped digit of the head names another instruction, whose text is another.
                assert_eq!(payloads.recognise(&wrong), None, "bit {bit} of byte {at}");
            }
        }
        assert_eq!(payloads.recognise(&right[..right.len() - 1]), None);
        assert_eq!(payloads.recognise(&[right.clone(), vec![0]].concat()), None);
    }

    #[test]
    fn no_two_payloads_are_alike() {
        let payloads = payloads(100);
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..5_000 {
            assert!(seen.insert(change(&payloads, Label { step: 1, index })));
            assert!(seen.insert(change(&payloads, Label { step: 2, index })));
        }
    }
}
