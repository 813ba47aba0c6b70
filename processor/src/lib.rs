//! The partition owner: instructions in, events out, exactly once.
