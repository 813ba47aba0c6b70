//! End-to-end scenarios with a real nats-server.
