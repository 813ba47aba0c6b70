//! The numbers whose verdict the client knows: gateways tell refusals again, because they cannot know
//! which ones arrived, and each is to be reported once.

use std::collections::VecDeque;

/// Numbers remembered of each epoch. Gateways tell fewer refusals again, and the latest ones.
const KNOWN_MAX: usize = 256;

/// Epochs remembered, the present one included: what was logged under one may be refused when the
/// client is at the next already.
const EPOCHS_MAX: usize = 4;

#[derive(Debug)]
struct Known {
    epoch: u64,
    /// The highest number sent under it, once it was left.
    upto: u64,
    numbers: VecDeque<u64>,
}

/// See above.
#[derive(Debug)]
pub(crate) struct Verdicts {
    /// The present epoch is the first.
    epochs: VecDeque<Known>,
}

impl Verdicts {
    pub(crate) fn new(epoch: u64) -> Verdicts {
        Verdicts { epochs: VecDeque::from([Known { epoch, upto: u64::MAX, numbers: VecDeque::new() }]) }
    }

    /// Notes a verdict. False if it was known, or is of a number this client does not know of.
    pub(crate) fn learn(&mut self, epoch: u64, number: u64) -> bool {
        let known = self.epochs.iter_mut().find(|known| known.epoch == epoch && number <= known.upto);
        let Some(known) = known.filter(|known| !known.numbers.contains(&number)) else { return false };
        if known.numbers.len() == KNOWN_MAX {
            known.numbers.pop_front();
        }
        known.numbers.push_back(number);
        true
    }

    /// Another epoch begins; numbers up to `sent_upto` were sent under the one before.
    pub(crate) fn begin(&mut self, epoch: u64, sent_upto: u64) {
        if let Some(left) = self.epochs.front_mut() {
            left.upto = sent_upto;
        }
        self.epochs.push_front(Known { epoch, upto: u64::MAX, numbers: VecDeque::new() });
        self.epochs.truncate(EPOCHS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_news_once_and_only_of_numbers_that_were_sent() {
        let mut verdicts = Verdicts::new(5);
        assert!(verdicts.learn(5, 1) && !verdicts.learn(5, 1));
        verdicts.begin(6, 2);
        assert!(!verdicts.learn(5, 1) && verdicts.learn(5, 2) && !verdicts.learn(5, 3));
        assert!(verdicts.learn(6, 1), "another epoch's");
        assert!(!verdicts.learn(4, 1), "somebody else's");
        (7..=6 + EPOCHS_MAX as u64).for_each(|epoch| verdicts.begin(epoch, 9));
        assert!(!verdicts.learn(6, 2), "long ago");
        let now = 6 + EPOCHS_MAX as u64;
        assert!((1..=2 * KNOWN_MAX as u64).all(|number| verdicts.learn(now, number)));
        assert_eq!(verdicts.epochs[0].numbers.len(), KNOWN_MAX);
    }
}
