//! Who does what: client i watches document `i mod D` and writes to it, and instruction n is client
//! `n mod C`'s.

/// So many clients, so many documents.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) clients: usize,
    pub(super) documents: usize,
}

impl Layout {
    /// The document of a client.
    pub(super) fn document_of(self, client: usize) -> usize {
        client % self.documents
    }

    /// Which of its document's watchers a client is.
    pub(super) fn slot_of(self, client: usize) -> usize {
        client / self.documents
    }

    /// The watchers of a document that has the most.
    pub(super) fn slots(self) -> usize {
        self.clients.div_ceil(self.documents)
    }

    /// The clients that watch a document.
    pub(super) fn watchers_of(self, document: usize) -> impl Iterator<Item = usize> {
        (document..self.clients).step_by(self.documents)
    }

    /// Who sends an instruction.
    pub(super) fn sender(self, index: u32) -> usize {
        index as usize % self.clients
    }

    /// How many of its sender's instructions come before it.
    pub(super) fn turn(self, index: u32) -> u32 {
        (index as usize / self.clients) as u32
    }

    /// The instruction that is a client's at this turn.
    pub(super) fn index(self, client: usize, turn: u32) -> u32 {
        (turn as usize * self.clients + client) as u32
    }

    /// Deliveries that so many instructions make.
    pub(super) fn deliveries(self, instructions: u32) -> u64 {
        let count = |client: usize| self.watchers_of(self.document_of(client)).count() as u64;
        let each: Vec<u64> = (0..self.clients).map(count).collect();
        let (rounds, rest) = (u64::from(self.turn(instructions)), self.sender(instructions));
        rounds * each.iter().sum::<u64>() + each[..rest].iter().sum::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_watches_the_document_it_writes_to() {
        for (clients, documents) in [(1, 1), (9, 3), (10, 3), (11, 4), (5, 5)] {
            let layout = Layout { clients, documents };
            let mut expected = 0;
            for index in 0..50 {
                assert_eq!(layout.deliveries(index), expected);
                let sender = layout.sender(index);
                let watchers: Vec<usize> = layout.watchers_of(layout.document_of(sender)).collect();
                assert!(watchers.contains(&sender));
                for (slot, watcher) in watchers.iter().enumerate() {
                    assert_eq!((layout.slot_of(*watcher), layout.document_of(*watcher)), (slot, sender % documents));
                    assert!(slot < layout.slots());
                }
                assert_eq!(layout.index(sender, layout.turn(index)), index);
                expected += watchers.len() as u64;
            }
        }
    }
}
