//! Listeners, sessions and fan-out.
