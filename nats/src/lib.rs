//! Streams, batch writer, log reader, read-service calls and the child nats-server.
