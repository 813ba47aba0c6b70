//! What can go wrong for a caller.

use fieldstream_shared::code::Code;
use fieldstream_shared::ids::IdError;

/// Why a call failed. Cheap to clone: one cause may end many calls.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The instruction or request was refused; nothing changed. Final: sending it again is a new
    /// instruction.
    #[error("refused: {0} ({meaning})", meaning = meaning(*.0))]
    Refused(Code),
    /// The instruction could not be carried out because of itself and is kept as a dead letter.
    #[error("dead letter: {0} ({meaning})", meaning = meaning(*.0))]
    Dead(Code),
    /// Nobody can tell any more whether the instruction was carried out: it was sent on more than one
    /// connection, and before its outcome was known another process or machine with the same client
    /// id took over. It is not sent again, because it might be carried out twice: look at the document.
    #[error("the outcome is unknown: the same client id was used elsewhere before it was told")]
    OutcomeUnknown,
    /// The server closed the connection for good, or the first connection at all.
    #[error("the server closed the connection: {code}: {reason}")]
    Closed {
        /// Why.
        code: Code,
        /// Why, in the server's words.
        reason: String,
    },
    /// The time allowed for connecting or closing is over.
    #[error("timed out")]
    TimedOut,
    /// The server's URL cannot be used.
    #[error("cannot use the server URL: {0}")]
    Url(String),
    /// TLS or QUIC could not be set up, or the server's certificate was not accepted.
    #[error("TLS: {0}")]
    Tls(String),
    /// The network failed.
    #[error("{0}")]
    Io(String),
    /// A document or client id breaks the rules for ids.
    #[error("the id {0}")]
    InvalidId(#[from] IdError),
    /// The state file cannot be used.
    #[error("state file: {0}")]
    StateFile(String),
    /// The server sent something that this version cannot make sense of.
    #[error("unexpected answer from the server: {0}")]
    Protocol(String),
    /// This client was closed, or its runtime is shutting down.
    #[error("this client is closed")]
    Ended,
}

fn meaning(code: Code) -> &'static str {
    code.meaning().trim_end_matches('.')
}
