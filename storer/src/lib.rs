//! The projection into LMDB and the read service.
