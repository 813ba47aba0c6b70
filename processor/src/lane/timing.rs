//! When what an event batch is made of came: for histograms, once per batch, and for the traced
//! instructions in it.

use fieldstream_shared::ids::Number;

/// A traced instruction of an event batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traced {
    /// The gateway that its stamps go to.
    pub gateway: u64,
    /// The instruction.
    pub number: Number,
    /// When its message was read.
    pub read_us: u64,
}

/// When what an event batch is made of came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timing {
    /// When the first message with a record of the batch was read; 0 if there is none.
    pub read_us: u64,
    /// When a gateway received the instruction that has waited longest; 0 if there is none.
    pub received_us: u64,
    /// The traced instructions.
    pub traced: Vec<Traced>,
    message_read_us: u64,
}

impl Timing {
    /// The records that follow are of a message read then.
    pub(super) fn at_message(&mut self, read_us: u64) {
        self.message_read_us = read_us;
    }

    /// A record was applied.
    pub(super) fn applied(&mut self, received_us: u64) {
        if self.received_us == 0 || received_us < self.received_us {
            self.received_us = received_us;
        }
        if self.read_us == 0 {
            self.read_us = self.message_read_us;
        }
    }

    /// The record is of a traced instruction.
    pub(super) fn trace(&mut self, gateway: u64, number: Number) {
        self.traced.push(Traced { gateway, number, read_us: self.message_read_us });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fieldstream_shared::ids::ClientId;

    #[test]
    fn a_batch_is_as_old_as_the_oldest_of_what_it_is_made_of() {
        let mut timing = Timing::default();
        timing.at_message(5);
        assert_eq!((timing.read_us, timing.received_us), (0, 0), "nothing of that message was applied yet");
        timing.at_message(10);
        timing.applied(3);
        timing.applied(2);
        timing.at_message(20);
        timing.applied(4);
        let number = Number { client: ClientId::new("c").unwrap(), epoch: 1, number: 2 };
        timing.trace(7, number.clone());
        assert_eq!((timing.read_us, timing.received_us), (10, 2));
        assert_eq!(timing.traced, [Traced { gateway: 7, number, read_us: 20 }]);
    }
}
