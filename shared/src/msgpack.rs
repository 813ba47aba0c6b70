//! A strict, borrowed MessagePack reader and a canonical writer.
//!
//! The writer always takes the shortest form, so equal values have equal bytes. The reader accepts
//! every valid form, allocates nothing, and checks each claimed length against the bytes that are
//! there. Arrays read with [`Reader::record`] may have more elements than the reader knows: that is
//! how formats grow.

use crate::limits::{DEPTH_MAX, ENVELOPE_DEPTH_MAX};

/// Why bytes could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end inside a value, or a length claims more than is there.
    #[error("the bytes end inside a value")]
    Truncated,
    /// Another type than the one expected here.
    #[error("expected {0}")]
    Expected(&'static str),
    /// Text that is not UTF-8.
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// Nesting deeper than [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// A number, length or id outside its range.
    #[error("{0} is out of range")]
    OutOfRange(&'static str),
    /// Bytes behind the value.
    #[error("bytes behind the value")]
    Trailing,
    /// A version this reader does not know.
    #[error("unknown version {0}")]
    UnknownVersion(u64),
}

/// Reads MessagePack values from a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

/// The type of the next value, with its length where it has one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// nil
    Nil,
    /// true or false
    Bool(bool),
    /// any integer, `i64::MIN..=u64::MAX`
    Int(i128),
    /// float 32 or 64, widened
    Float(f64),
    /// text
    Str(&'a str),
    /// bytes
    Bin(&'a [u8]),
    /// so many values follow
    Array(usize),
    /// so many pairs follow
    Map(usize),
    /// an extension type: nothing of ours uses one
    Ext(&'a [u8]),
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Reader { rest: bytes }
    }

    /// Bytes not yet read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    #[inline]
    fn take(&mut self, n: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(n).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    /// Reads a big-endian integer of 1, 2, 4 or 8 bytes.
    #[inline]
    fn uint(&mut self, bytes: usize) -> Result<u64, DecodeError> {
        let rest = self.rest;
        let n = match bytes {
            1 => rest.first().map(|n| u64::from(*n)),
            2 => rest.first_chunk().map(|n| u64::from(u16::from_be_bytes(*n))),
            4 => rest.first_chunk().map(|n| u64::from(u32::from_be_bytes(*n))),
            _ => rest.first_chunk().map(|n| u64::from_be_bytes(*n)),
        };
        let n = n.ok_or(DecodeError::Truncated)?;
        self.rest = rest.get(bytes..).ok_or(DecodeError::Truncated)?;
        Ok(n)
    }

    fn len(&mut self, bytes: usize) -> Result<usize, DecodeError> {
        usize::try_from(self.uint(bytes)?).map_err(|_| DecodeError::Truncated)
    }

    fn items(&mut self, n: usize, bytes_each: usize) -> Result<usize, DecodeError> {
        // Every item has at least one byte: a count beyond the bytes left is a lie.
        match n.checked_mul(bytes_each) {
            Some(least) if least <= self.rest.len() => Ok(n),
            _ => Err(DecodeError::Truncated),
        }
    }

    #[inline]
    fn text(&mut self, n: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.take(n)?).map_err(|_| DecodeError::InvalidUtf8)
    }

    /// The length of the text that begins here, if one does; its head is read then.
    #[inline]
    fn text_head(&mut self) -> Result<Option<usize>, DecodeError> {
        let Some((marker, rest)) = self.rest.split_first() else { return Ok(None) };
        match marker {
            0xa0..=0xbf => {
                self.rest = rest;
                Ok(Some(usize::from(marker & 0x1f)))
            }
            0xd9..=0xdb => {
                self.rest = rest;
                self.len(1 << (marker - 0xd9)).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Reads the next value, or the head of an array or map.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] or [`DecodeError::InvalidUtf8`].
    pub fn token(&mut self) -> Result<Token<'a>, DecodeError> {
        let marker = self.take(1)?[0];
        Ok(match marker {
            0x00..=0x7f => Token::Int(i128::from(marker)),
            0xe0..=0xff => Token::Int(i128::from(marker as i8)),
            0x80..=0x8f => Token::Map(self.items(usize::from(marker & 0x0f), 2)?),
            0x90..=0x9f => Token::Array(self.items(usize::from(marker & 0x0f), 1)?),
            0xa0..=0xbf => Token::Str(self.text(usize::from(marker & 0x1f))?),
            0xc0 => Token::Nil,
            0xc1 => return Err(DecodeError::Expected("a MessagePack value")),
            0xc2 => Token::Bool(false),
            0xc3 => Token::Bool(true),
            0xc4..=0xc6 => {
                let n = self.len(1 << (marker - 0xc4))?;
                Token::Bin(self.take(n)?)
            }
            0xc7..=0xc9 => {
                let n = self.len(1 << (marker - 0xc7))?;
                self.take(1)?;
                Token::Ext(self.take(n)?)
            }
            0xca => Token::Float(f64::from(f32::from_bits(self.uint(4)? as u32))),
            0xcb => Token::Float(f64::from_bits(self.uint(8)?)),
            0xcc..=0xcf => Token::Int(i128::from(self.uint(1 << (marker - 0xcc))?)),
            0xd0 => Token::Int(i128::from(self.uint(1)? as u8 as i8)),
            0xd1 => Token::Int(i128::from(self.uint(2)? as u16 as i16)),
            0xd2 => Token::Int(i128::from(self.uint(4)? as u32 as i32)),
            0xd3 => Token::Int(i128::from(self.uint(8)? as i64)),
            0xd4..=0xd8 => {
                self.take(1)?;
                Token::Ext(self.take(1 << (marker - 0xd4))?)
            }
            0xd9..=0xdb => {
                let n = self.len(1 << (marker - 0xd9))?;
                Token::Str(self.text(n)?)
            }
            0xdc | 0xdd => {
                let n = self.len(if marker == 0xdc { 2 } else { 4 })?;
                Token::Array(self.items(n, 1)?)
            }
            0xde | 0xdf => {
                let n = self.len(if marker == 0xde { 2 } else { 4 })?;
                Token::Map(self.items(n, 2)?)
            }
        })
    }

    /// Reads a non-negative integer.
    ///
    /// # Errors
    /// If something else is next.
    #[inline]
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        // Nearly all of what is read is one of these.
        match self.rest.split_first() {
            Some((n @ 0x00..=0x7f, rest)) => {
                self.rest = rest;
                return Ok(u64::from(*n));
            }
            Some((marker @ 0xcc..=0xcf, rest)) => {
                self.rest = rest;
                return self.uint(1 << (marker - 0xcc));
            }
            _ => {}
        }
        match self.token()? {
            Token::Int(n) => u64::try_from(n).map_err(|_| DecodeError::OutOfRange("an integer")),
            _ => Err(DecodeError::Expected("an integer")),
        }
    }

    /// Reads a non-negative integer of at most 32 bits.
    ///
    /// # Errors
    /// If something else is next.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.u64()?).map_err(|_| DecodeError::OutOfRange("an integer"))
    }

    /// Reads a non-negative integer of at most 16 bits.
    ///
    /// # Errors
    /// If something else is next.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        u16::try_from(self.u64()?).map_err(|_| DecodeError::OutOfRange("an integer"))
    }

    /// Reads an integer of either sign.
    ///
    /// # Errors
    /// If something else is next.
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        match self.token()? {
            Token::Int(n) => i64::try_from(n).map_err(|_| DecodeError::OutOfRange("an integer")),
            _ => Err(DecodeError::Expected("an integer")),
        }
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// If something else is next.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.token()? {
            Token::Bool(b) => Ok(b),
            _ => Err(DecodeError::Expected("a boolean")),
        }
    }

    /// Reads text.
    ///
    /// # Errors
    /// If something else is next.
    #[inline]
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        if let Some(n) = self.text_head()? {
            return self.text(n);
        }
        match self.token()? {
            Token::Str(s) => Ok(s),
            _ => Err(DecodeError::Expected("text")),
        }
    }

    /// Reads bytes.
    ///
    /// # Errors
    /// If something else is next.
    pub fn bin(&mut self) -> Result<&'a [u8], DecodeError> {
        match self.token()? {
            Token::Bin(b) => Ok(b),
            _ => Err(DecodeError::Expected("bytes")),
        }
    }

    /// Reads nil as `None`, anything else with `read`.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn optional<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.rest.first() == Some(&0xc0) {
            self.rest = &self.rest[1..];
            return Ok(None);
        }
        read(self).map(Some)
    }

    /// Reads the head of an array and returns its number of elements, which is at most the number
    /// of bytes left.
    ///
    /// # Errors
    /// If something else is next.
    #[inline]
    pub fn array(&mut self) -> Result<usize, DecodeError> {
        if let Some((marker @ 0x90..=0x9f, rest)) = self.rest.split_first() {
            self.rest = rest;
            return self.items(usize::from(marker & 0x0f), 1);
        }
        match self.token()? {
            Token::Array(n) => Ok(n),
            _ => Err(DecodeError::Expected("an array")),
        }
    }

    /// Reads an array of `known` elements or more with `read`, then passes over the elements a
    /// newer version appended.
    ///
    /// # Errors
    /// If there are fewer elements, or those of `read`.
    pub fn record<T>(
        &mut self,
        known: usize,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        let more = self.array()?.checked_sub(known).ok_or(DecodeError::Expected("a longer array"))?;
        let value = read(self)?;
        for _ in 0..more {
            self.skip()?;
        }
        Ok(value)
    }

    /// Passes over one value of any kind.
    ///
    /// # Errors
    /// [`DecodeError::TooDeep`], or if the value is not whole.
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        let items = |token: Token<'_>| match token {
            Token::Array(n) => n,
            Token::Map(n) => n.saturating_mul(2),
            _ => 0,
        };
        let mut items_here = items(self.token()?);
        if items_here == 0 {
            return Ok(());
        }
        let mut open = [0_usize; ENVELOPE_DEPTH_MAX];
        let mut depth = 0;
        loop {
            let items_now = items_here;
            if items_now > 0 {
                *open.get_mut(depth).ok_or(DecodeError::TooDeep)? = items_now;
                depth += 1;
            } else {
                while depth > 0 {
                    open[depth - 1] -= 1;
                    if open[depth - 1] > 0 {
                        break;
                    }
                    depth -= 1;
                }
            }
            if depth == 0 {
                return Ok(());
            }
            items_here = items(self.token()?);
        }
    }

    /// Passes over one value and returns its bytes.
    ///
    /// # Errors
    /// Those of [`Reader::skip`].
    pub fn raw(&mut self) -> Result<&'a [u8], DecodeError> {
        let start = self.rest;
        self.skip()?;
        Ok(&start[..start.len() - self.rest.len()])
    }

    /// Ends reading.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] if bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing) }
    }
}

/// Reads a whole slice with `read`.
///
/// # Errors
/// Those of `read`, or [`DecodeError::Trailing`].
pub fn decode<'a, T>(
    bytes: &'a [u8],
    read: impl FnOnce(&mut Reader<'a>) -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    let mut reader = Reader::new(bytes);
    let value = read(&mut reader)?;
    reader.finish()?;
    Ok(value)
}

/// Canonical writing: every function appends the shortest form.
pub trait Write: Sized {
    /// Appends raw bytes.
    fn raw(&mut self, bytes: &[u8]);

    /// Appends nil.
    fn nil(&mut self) {
        self.raw(&[0xc0]);
    }

    /// Appends a boolean.
    fn bool(&mut self, b: bool) {
        self.raw(&[0xc2 + u8::from(b)]);
    }

    /// Appends a non-negative integer.
    #[inline]
    fn u64(&mut self, n: u64) {
        match n {
            0..=0x7f => self.raw(&[n as u8]),
            0x80..=0xff => self.raw(&[0xcc, n as u8]),
            0x100..=0xffff => self.head(0xcd, (n as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => self.head(0xce, (n as u32).to_be_bytes()),
            _ => self.head(0xcf, n.to_be_bytes()),
        }
    }

    /// Appends an integer.
    fn i64(&mut self, n: i64) {
        match n {
            0.. => self.u64(n as u64),
            -32..=-1 => self.raw(&[n as u8]),
            -0x80..=-33 => self.raw(&[0xd0, n as u8]),
            -0x8000..=-0x81 => self.head(0xd1, (n as i16).to_be_bytes()),
            -0x8000_0000..=-0x8001 => self.head(0xd2, (n as i32).to_be_bytes()),
            _ => self.head(0xd3, n.to_be_bytes()),
        }
    }

    /// Appends a 64-bit float.
    fn f64(&mut self, n: f64) {
        self.head(0xcb, n.to_bits().to_be_bytes());
    }

    /// Appends text.
    fn str(&mut self, s: &str) {
        match s.len() {
            n @ 0..=31 => self.raw(&[0xa0 | n as u8]),
            n @ 32..=0xff => self.raw(&[0xd9, n as u8]),
            n @ 0x100..=0xffff => self.head(0xda, (n as u16).to_be_bytes()),
            n => self.head(0xdb, (n as u32).to_be_bytes()),
        }
        self.raw(s.as_bytes());
    }

    /// Appends the head of `n` bytes; the bytes follow.
    fn bin_head(&mut self, n: usize) {
        match n {
            0..=0xff => self.raw(&[0xc4, n as u8]),
            0x100..=0xffff => self.head(0xc5, (n as u16).to_be_bytes()),
            _ => self.head(0xc6, (n as u32).to_be_bytes()),
        }
    }

    /// Appends bytes.
    fn bin(&mut self, bytes: &[u8]) {
        self.bin_head(bytes.len());
        self.raw(bytes);
    }

    /// Appends the head of an array; `n` values follow.
    fn array(&mut self, n: usize) {
        match n {
            0..=15 => self.raw(&[0x90 | n as u8]),
            16..=0xffff => self.head(0xdc, (n as u16).to_be_bytes()),
            _ => self.head(0xdd, (n as u32).to_be_bytes()),
        }
    }

    /// Appends the head of a map; `n` pairs follow.
    fn map(&mut self, n: usize) {
        match n {
            0..=15 => self.raw(&[0x80 | n as u8]),
            16..=0xffff => self.head(0xde, (n as u16).to_be_bytes()),
            _ => self.head(0xdf, (n as u32).to_be_bytes()),
        }
    }

    /// Appends nil or the value.
    fn optional<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.nil(),
            Some(value) => write(self, value),
        }
    }

    /// Appends a marker and its big-endian number.
    #[inline]
    fn head<const N: usize>(&mut self, marker: u8, number: [u8; N]) {
        let mut bytes = [marker; 9];
        bytes[1..=N].copy_from_slice(&number);
        self.raw(&bytes[..=N]);
    }
}

impl Write for Vec<u8> {
    #[inline]
    fn raw(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_take_their_shortest_form_and_come_back() {
        for (n, bytes) in [(0, 1), (127, 1), (128, 2), (255, 2), (256, 3), (65_536, 5), (1 << 32, 9), (u64::MAX, 9)] {
            let mut out = Vec::new();
            Write::u64(&mut out, n);
            assert_eq!(out.len(), bytes, "{n}");
            assert_eq!(decode(&out, Reader::u64), Ok(n));
        }
        for (n, bytes) in [(-1, 1), (-32, 1), (-33, 2), (-128, 2), (-129, 3), (-32_769, 5), (i64::MIN, 9)] {
            let mut out = Vec::new();
            Write::i64(&mut out, n);
            assert_eq!(out.len(), bytes, "{n}");
            assert_eq!(decode(&out, Reader::token), Ok(Token::Int(i128::from(n))));
        }
    }

    #[test]
    fn a_claimed_length_is_checked_before_anything_else() {
        for lie in [
            &[0xdd, 0xff, 0xff, 0xff, 0xff][..],
            &[0xdf, 0xff, 0xff, 0xff, 0xff],
            &[0xc6, 0xff, 0xff, 0xff, 0xff],
            &[0xdb, 0, 0, 1, 0, 1],
        ] {
            assert_eq!(Reader::new(lie).token(), Err(DecodeError::Truncated));
        }
    }

    #[test]
    fn nesting_ends_at_the_limit() {
        let nested = |n: usize| [vec![0x91; n], vec![0xc0]].concat();
        assert_eq!(decode(&nested(ENVELOPE_DEPTH_MAX), Reader::skip), Ok(()));
        assert_eq!(decode(&nested(ENVELOPE_DEPTH_MAX + 1), Reader::skip), Err(DecodeError::TooDeep));
    }

    #[test]
    fn a_longer_array_is_a_newer_version() {
        let mut out = Vec::new();
        out.array(3);
        Write::u64(&mut out, 7);
        out.array(2);
        out.nil();
        out.nil();
        out.str("new");
        assert_eq!(decode(&out, |r| r.record(1, Reader::u64)), Ok(7));
        assert!(decode(&out, |r| r.record(4, Reader::u64)).is_err());
    }
}
