//! The device SDK.
