//! Stands in for `lmdb-master-sys`, the LMDB binding that heed names.
//!
//! heed's own binding bundles LMDB's development branch, whose *lock file* format (version 2) no
//! released LMDB 0.9 shares: py-lmdb, `mdb_stat` and the Go and R bindings would refuse the live
//! file. `lmdb-rkv-sys` bundles the 0.9 release line (lock format 1), so this crate hands its
//! symbols on under the name heed asks for, together with the two constants that only the
//! development branch defines. heed passes neither of them unless its caller asks for it.
#![allow(non_upper_case_globals, missing_docs)]

pub use lmdb_sys::*;

/// Open the previous snapshot: unknown to LMDB 0.9, which ignores the flag.
pub const MDB_PREVSNAPSHOT: libc::c_uint = 0x0200_0000;
/// Unexpected problem, transaction should abort: never returned by LMDB 0.9.
pub const MDB_PROBLEM: libc::c_int = -30779;
