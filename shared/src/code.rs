//! Numeric codes for refusals, dead letters and closed connections. The numbers are part of the
//! device wire and of the logs: they are never reused, and readers pass unknown ones through.

use std::fmt;

/// A code with a stable number and a name (`docs/PROTOCOL.md` lists them all).
///
/// 1–63 refuse one instruction or request, 64–99 mark a dead letter, 100–199 close a connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Code(pub u16);

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $konst:ident = $number:literal $name:literal;)+) => {
        impl Code {
            $($(#[doc = $doc])+ pub const $konst: Code = Code($number);)+

            /// Every code this version knows.
            pub const ALL: &'static [Code] = &[$(Code::$konst),+];

            /// The code's name, `unknown` for a number of a newer version.
            pub fn name(self) -> &'static str {
                match self.0 { $($number => $name,)+ _ => "unknown" }
            }

            /// What the code means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self.0 { $($number => concat!($($doc),+).trim_ascii(),)+ _ => "a code of a newer version" }
            }
        }
    };
}

codes! {
    /// A later number of this client was logged for the partition and this one never was.
    SKIPPED = 1 "skipped";
    /// The client has a newer epoch; take a higher one.
    STALE_EPOCH = 2 "stale_epoch";
    /// The number was used before for something else.
    NUMBER_REUSED = 3 "number_reused";
    /// `if_rev` is not the document's revision.
    CONFLICT = 4 "conflict";
    /// The document does not exist.
    NOT_FOUND = 5 "not_found";
    /// The operation needs the other kind of document, or a map where another value stands.
    WRONG_KIND = 6 "wrong_kind";
    /// An edit reaches behind the end of the text.
    OUT_OF_RANGE = 7 "out_of_range";
    /// A splice without edits.
    NO_EDITS = 8 "no_edits";
    /// An edit that neither deletes nor inserts.
    EMPTY_EDIT = 9 "empty_edit";
    /// The sum is not representable.
    NUMBER_OVERFLOW = 10 "number_overflow";
    /// The instruction, its output or the resulting document is over its limit.
    TOO_LARGE = 11 "too_large";
    /// The client has no right to do this on this document.
    FORBIDDEN = 12 "forbidden";
    /// The document id is empty, too long or has control characters.
    INVALID_DOCUMENT_ID = 13 "invalid_document_id";
    /// The operation's arguments are not of the documented form.
    INVALID_INSTRUCTION = 14 "invalid_instruction";
    /// No custom instruction of that name is registered.
    UNKNOWN_INSTRUCTION = 15 "unknown_instruction";
    /// The value at the path is not a number.
    NOT_A_NUMBER = 16 "not_a_number";
    /// The value nests deeper than 16 levels.
    TOO_DEEP = 17 "too_deep";
    /// A session holds at most so many watches.
    TOO_MANY_WATCHES = 18 "too_many_watches";
    /// The answer did not come in time; ask again.
    UNAVAILABLE = 19 "unavailable";

    /// A record in the log could not be decoded.
    UNDECODABLE = 64 "undecodable";
    /// The instruction's handler panicked.
    HANDLER_PANICKED = 65 "handler_panicked";

    /// A frame is not of the documented form.
    MALFORMED_FRAME = 100 "malformed_frame";
    /// A frame's length is over the limit.
    FRAME_TOO_LARGE = 101 "frame_too_large";
    /// A frame with a tag that clients do not send.
    UNKNOWN_FRAME = 102 "unknown_frame";
    /// The first frame must be HELLO.
    HELLO_EXPECTED = 103 "hello_expected";
    /// HELLO is sent once per connection.
    SECOND_HELLO = 104 "second_hello";
    /// The server does not speak this protocol version.
    UNSUPPORTED_PROTOCOL = 105 "unsupported_protocol";
    /// The token is missing, unknown or not for this client id.
    UNAUTHORIZED = 106 "unauthorized";
    /// The client id is empty, too long or has control characters.
    INVALID_CLIENT_ID = 107 "invalid_client_id";
    /// A number outside the window of unresolved instructions.
    OUTSIDE_WINDOW = 108 "outside_window";
    /// No HELLO, or a frame that stayed incomplete, within the time allowed.
    TIMED_OUT = 109 "timed_out";
    /// Nothing was heard from the client for longer than the keepalive allows.
    IDLE = 110 "idle";
    /// Another connection with the same client id took over.
    TAKEN_OVER = 111 "taken_over";
    /// The server is stopping; connect again.
    SHUTTING_DOWN = 112 "shutting_down";
    /// The client does not read what is sent to it: named in logs; such a client is cut off without a word.
    TOO_SLOW = 113 "too_slow";
    /// The server has as many connections or as much work as it takes; connect again later.
    BUSY = 114 "busy";
    /// The log cannot be written at present; connect again later.
    OUTAGE = 115 "outage";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "unknown" => write!(f, "code {}", self.0),
            name => f.write_str(name),
        }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}({})", self.0)
    }
}
