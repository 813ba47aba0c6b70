//! Storers with a file of LMDB in a folder.

use fieldstream_shared::read::Progress;
use fieldstream_storer::projection::{Batch, Projection};
use fieldstream_storer::{Identity, Store, StoreOptions, TableError};
use std::path::Path;

/// The lineage of the log.
pub(crate) const LOG_ID: u64 = 77;
/// Room for the largest plan; takes address space only.
const MAP_BYTES: usize = 4 << 30;
/// As a storer is told by default.
const HISTORY_REVISIONS: u64 = 1_000;
/// Any time.
const NOW_US: u64 = 1_800_000_000_000_000;

/// A storer that takes in one lane.
pub(crate) struct Storer {
    store: Store,
    projection: Projection,
    sequence: u64,
}

impl Storer {
    pub(crate) fn new(directory: &Path) -> Storer {
        let options = StoreOptions {
            directory: directory.to_owned(),
            file_mode: 0o664,
            map_bytes: MAP_BYTES,
            history_revisions: HISTORY_REVISIONS,
        };
        let identity = Identity { lanes: 1, log_id: LOG_ID, new_storer: 1, now_us: NOW_US };
        let store = Store::open(options, &identity).expect("a store");
        Storer { projection: Projection::new(store.checkpoints().to_vec()), store, sequence: 0 }
    }

    /// Takes in the next message of EVENTS.
    pub(crate) fn take_in(&mut self, sequence: u64, message: &[u8]) {
        let batch = Batch::decode::<TableError>(0, sequence, message).expect("a batch");
        let read = self.store.read().expect("a read transaction");
        self.projection.handle(batch, &read).expect("events that fit");
        self.sequence = sequence;
    }

    /// Events taken in since the last commit.
    pub(crate) fn events(&self) -> usize {
        self.projection.events()
    }

    /// Commits what was taken in, and says how far the file is.
    pub(crate) fn commit(&mut self) -> Progress {
        self.store.commit(&self.projection.writes(NOW_US)).expect("a commit");
        self.projection.committed();
        Progress { storer: 1, log_id: LOG_ID, lane: 0, sequence: self.sequence }
    }
}
