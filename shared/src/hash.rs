//! xxh3_64 over bytes that lie in several places.

use xxhash_rust::xxh3::{Xxh3, xxh3_64};

/// So many bytes are put together first: hashing what lies in one place is a good deal cheaper.
const GATHERED_BYTES_MAX: usize = 1024;

/// xxh3_64 of two slices, one behind the other.
pub(crate) fn hash_of(head: &[u8], tail: &[u8]) -> u64 {
    let mut gathered = [0; GATHERED_BYTES_MAX];
    let n = head.len().saturating_add(tail.len());
    let Some(room) = gathered.get_mut(..n) else {
        let mut hash = Xxh3::new();
        hash.update(head);
        hash.update(tail);
        return hash.digest();
    };
    let (front, back) = room.split_at_mut(head.len());
    front.copy_from_slice(head);
    back.copy_from_slice(tail);
    xxh3_64(room)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_hash_of_the_whole() {
        let bytes: Vec<u8> = (0..5000_u32).map(|n| (n * 7 % 251) as u8).collect();
        for n in [0, 1, 2, 17, 240, 241, 500, 1023, 1024, 1025, 5000] {
            for head in [0, 1, n / 2, n] {
                let (head, tail) = bytes[..n].split_at(head.min(n));
                assert_eq!(hash_of(head, tail), xxh3_64(&bytes[..n]), "{n}");
            }
        }
    }
}
