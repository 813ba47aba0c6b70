//! Custom instructions: handlers registered by name.

use crate::change::Change;
use crate::code::Code;
use crate::document::Document;
use std::{collections::BTreeMap, sync::Arc};

/// A custom instruction's handler.
///
/// It must be deterministic: the same document and arguments give the same change, in every
/// processor and at every repetition. No clock, no randomness, no state of its own, no iteration
/// over hash maps. It describes what happens as primitives; only those reach the log, so storers,
/// gateways and clients need not know the handler.
///
/// A handler that panics makes the instruction a dead letter; the partition goes on.
pub trait CustomInstruction: Send + Sync + 'static {
    /// The name clients call it by: 1–64 bytes.
    fn name(&self) -> &str;

    /// Decides what the instruction does to the document.
    ///
    /// # Errors
    /// A code that refuses the instruction.
    fn apply(&self, document: &Document, arguments: &[u8]) -> Result<Change, Code>;
}

/// The custom instructions a processor knows.
#[derive(Clone, Default)]
pub struct Registry {
    handlers: Arc<BTreeMap<String, Arc<dyn CustomInstruction>>>,
}

impl Registry {
    /// This registry and one more handler; one of the same name is replaced.
    #[must_use]
    pub fn with(self, handler: impl CustomInstruction) -> Registry {
        let mut handlers = (*self.handlers).clone();
        handlers.insert(handler.name().to_owned(), Arc::new(handler));
        Registry { handlers: Arc::new(handlers) }
    }

    /// The handler of this name.
    pub fn get(&self, name: &str) -> Option<&dyn CustomInstruction> {
        self.handlers.get(name).map(|h| &**h)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.handlers.keys()).finish()
    }
}
