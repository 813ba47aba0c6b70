//! Refusals that nobody waits for.

use crate::options::LateRefusal;
use std::collections::VecDeque;
use tokio::sync::broadcast;

/// Refusals kept for a receiver that is behind, and for the first one that subscribes: more than
/// a state file can bring.
const KEPT_MAX: usize = 64;
const _: () = assert!(KEPT_MAX as u64 >= fieldstream_shared::limits::NUMBER_WINDOW);

/// Gives refusals to whoever subscribes. What comes before the first subscription is kept for it:
/// what a state file brought is answered as soon as the client connects, before a program can ask.
#[derive(Debug, Default)]
pub(crate) struct Late {
    early: VecDeque<LateRefusal>,
    /// Made at the first subscription: most clients never have one, and a channel is not small.
    sender: Option<broadcast::Sender<LateRefusal>>,
    ended: bool,
}

impl Late {
    /// A refusal has come.
    pub(crate) fn tell(&mut self, refusal: LateRefusal) {
        match &self.sender {
            // An error means that nobody listens any more.
            Some(sender) => drop(sender.send(refusal)),
            None => {
                if self.early.len() == KEPT_MAX {
                    self.early.pop_front();
                }
                self.early.push_back(refusal);
            }
        }
    }

    /// What the first subscriber missed, and what is still to come.
    pub(crate) fn subscribe(&mut self) -> (VecDeque<LateRefusal>, broadcast::Receiver<LateRefusal>) {
        let receiver = match &self.sender {
            Some(sender) => sender.subscribe(),
            None => {
                let (sender, receiver) = broadcast::channel(KEPT_MAX);
                self.sender = Some(sender).filter(|_| !self.ended);
                receiver
            }
        };
        (std::mem::take(&mut self.early), receiver)
    }

    /// Nothing will come any more.
    pub(crate) fn end(&mut self) {
        self.sender = None;
        self.ended = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::code::Code;

    fn refusal(number: u64) -> LateRefusal {
        LateRefusal { epoch: 1, number, code: Code::CONFLICT, dead: false }
    }

    #[test]
    fn the_first_subscriber_gets_what_came_before_it() {
        let mut late = Late::default();
        (1..=KEPT_MAX as u64 + 2).for_each(|number| late.tell(refusal(number)));
        let (early, mut first) = late.subscribe();
        assert_eq!(early.iter().map(|r| r.number).collect::<Vec<_>>(), (3..=KEPT_MAX as u64 + 2).collect::<Vec<_>>());
        let (early, mut second) = late.subscribe();
        assert!(early.is_empty());
        late.tell(refusal(99));
        assert_eq!((first.try_recv(), second.try_recv()), (Ok(refusal(99)), Ok(refusal(99))));
        late.end();
        let closed = Err(broadcast::error::TryRecvError::Closed);
        assert_eq!((first.try_recv(), late.subscribe().1.try_recv()), (closed.clone(), closed));
    }
}
