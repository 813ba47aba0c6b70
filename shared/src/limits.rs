//! Every limit, each with its reason. Sizes are bytes of the encoded form.

/// Nesting of a MessagePack value, the outermost level included. Deep enough for any document
/// people write by hand, shallow enough that a decoder's stack and memory stay small whatever
/// arrives (a decoder at serde's default depth can be made to reserve 1 GiB by 5.5 KB).
pub const DEPTH_MAX: usize = 16;

/// Nesting a decoder passes over: a value at its limit inside a primitive, a change, an event and
/// its batch.
pub const ENVELOPE_DEPTH_MAX: usize = DEPTH_MAX + 4;

/// A document id: a UTF-8 path of 1 to 200 bytes. LMDB keys end at 511 bytes and history keys add
/// nine, so there is room for longer composite keys later.
pub const DOCUMENT_ID_BYTES_MAX: usize = 200;

/// A client id: 1 to 128 bytes.
pub const CLIENT_ID_BYTES_MAX: usize = 128;

/// A token. Generated tokens have 43 characters; longer ones are accepted up to this.
pub const TOKEN_BYTES_MAX: usize = 512;

/// One encoded instruction (document id, revision condition and operation).
pub const INSTRUCTION_BYTES_MAX: usize = 256 * 1024;

/// One document's encoded body. It can only grow by edits, each checked against this.
pub const DOCUMENT_BYTES_MAX: usize = 1024 * 1024;

/// One encoded event: an instruction's content and what the processor adds to it.
pub const EVENT_BYTES_MAX: usize = INSTRUCTION_BYTES_MAX + 4 * 1024;

/// A record batch closes when it holds this many records.
pub const BATCH_RECORDS_MAX: usize = 1024;

/// A record batch closes when its records reach this many bytes.
pub const BATCH_BYTES_MAX: usize = 256 * 1024;

/// The largest message a batch can become: one that was a byte short of closing takes one more
/// event. Stays well below NATS' default `max_payload` of 1 MiB.
pub const MESSAGE_BYTES_MAX: usize = 640 * 1024;

/// Bytes of a batch that are not records: version, id, parts of 256 partitions, record headers.
pub const BATCH_OVERHEAD_BYTES_MAX: usize = 256 * 96 + BATCH_RECORDS_MAX * 5 + 64;
const _: () = assert!(BATCH_BYTES_MAX + EVENT_BYTES_MAX + BATCH_OVERHEAD_BYTES_MAX <= MESSAGE_BYTES_MAX);

/// A device frame's payload, both ways: the largest instruction or change with its envelope.
/// Larger things (snapshots, listings) are split into several frames.
pub const FRAME_BYTES_MAX: usize = EVENT_BYTES_MAX + 4 * 1024;

/// The first frame of a connection, before the client is known: a HELLO with a token and a page
/// of watches. More watches follow in WATCH frames of the same round trip.
pub const HELLO_BYTES_MAX: usize = 64 * 1024;

/// Body bytes in one SNAPSHOT or GOT frame; longer bodies come in several.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 64 * 1024;

/// How far a new number may be ahead of the lowest unresolved one. Bounds the outcomes kept per
/// client and partition, and the work a client can have in flight.
pub const NUMBER_WINDOW: u64 = 32;

/// Edits in one `splice`. Each walks the text up to its position, so that this times the largest
/// document bounds what one instruction can cost; real editors send a few.
pub const EDITS_MAX: usize = 4096;

/// Keys in the path of an `add`: the nesting limit less the root map.
pub const PATH_KEYS_MAX: usize = DEPTH_MAX - 1;

/// Watches a session may hold. Each costs memory in the gateway while its document is cached.
pub const WATCHES_MAX: usize = 1024;

/// Watches in one HELLO; further ones are sent as WATCH frames.
pub const HELLO_WATCHES_MAX: usize = 128;

/// Documents in one page of a listing.
pub const LIST_PAGE_MAX: usize = 1000;

/// Documents and client marks in one read-service request.
pub const READ_ITEMS_MAX: usize = 4096;

/// Bytes of documents in one answer of the read service; a longer one is cut short, and the rest is
/// asked for again.
pub const READ_DOCUMENTS_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Payload bytes of one message of a read-service answer; longer answers come in several.
pub const READ_PART_BYTES_MAX: usize = 512 * 1024;

/// The text of a reason sent to a client or kept in a dead letter.
pub const REASON_BYTES_MAX: usize = 512;

/// Raw bytes of an undecodable record kept in its `dead` event; the rest is cut off (the log
/// itself still has it).
pub const DEAD_RAW_BYTES_MAX: usize = EVENT_BYTES_MAX - 8 * 1024;

/// The name of a custom instruction.
pub const CUSTOM_NAME_BYTES_MAX: usize = 64;

/// Lanes a deployment may have. Partitions are spread over lanes, and a lane with less than a few
/// partitions makes no sense.
pub const LANES_MAX: u16 = 64;
