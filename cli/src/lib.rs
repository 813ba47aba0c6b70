//! The fieldstream binary: every role and the client commands.
