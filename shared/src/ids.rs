//! Names of documents and clients, checked once where they enter.

use crate::limits::{CLIENT_ID_BYTES_MAX, DOCUMENT_ID_BYTES_MAX};
use std::{borrow::Borrow, fmt, ops::Deref, sync::Arc};

/// Why an id was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// No bytes at all.
    #[error("is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("has {bytes} bytes, more than {max}")]
    TooLong {
        /// Bytes given.
        bytes: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A control character (U+0000–U+001F, U+007F–U+009F).
    #[error("has a control character")]
    ControlCharacter,
}

fn check(id: &str, max: usize) -> Result<(), IdError> {
    match id {
        "" => Err(IdError::Empty),
        _ if id.len() > max => Err(IdError::TooLong { bytes: id.len(), max }),
        _ if id.chars().any(char::is_control) => Err(IdError::ControlCharacter),
        _ => Ok(()),
    }
}

macro_rules! id {
    ($(#[doc = $doc:literal])+ $name:ident, $max:expr) => {
        $(#[doc = $doc])+
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and takes an id.
            ///
            /// # Errors
            /// [`IdError`] if it is empty, too long or has control characters.
            pub fn new(id: &str) -> Result<Self, IdError> {
                check(id, $max).map(|()| Self(Arc::from(id)))
            }

            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }
        impl std::str::FromStr for $name {
            type Err = IdError;
            fn from_str(id: &str) -> Result<Self, IdError> {
                Self::new(id)
            }
        }
    };
}

id! {
    /// A document's id: a UTF-8 path of 1–200 bytes without control characters, such as
    /// `site7/boiler-1`. Cheap to clone.
    DocumentId, DOCUMENT_ID_BYTES_MAX
}
id! {
    /// A client's id: 1–128 bytes of UTF-8 without control characters. Cheap to clone.
    ClientId, CLIENT_ID_BYTES_MAX
}

/// An instruction's number: a client's id, its epoch (which start of the client) and a counter
/// that begins at 1 in every epoch. Used once, for ever.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Number {
    /// The client that gave the number.
    pub client: ClientId,
    /// Microseconds since the Unix epoch at the client's start, or more; never goes back.
    pub epoch: u64,
    /// Counter within the epoch, from 1.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked_at_their_limits() {
        assert!(DocumentId::new(&"x".repeat(200)).is_ok());
        assert_eq!(DocumentId::new(&"x".repeat(201)), Err(IdError::TooLong { bytes: 201, max: 200 }));
        assert_eq!(DocumentId::new(""), Err(IdError::Empty));
        assert_eq!(DocumentId::new("a\0b"), Err(IdError::ControlCharacter));
        assert_eq!(DocumentId::new("a\u{85}b"), Err(IdError::ControlCharacter));
        assert!(DocumentId::new("site 7/boiler.1/Größe").is_ok());
        assert!(ClientId::new(&"x".repeat(129)).is_err());
    }
}
