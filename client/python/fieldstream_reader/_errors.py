"""What can be in the way, in words: what, where, what to do."""


class ReaderError(Exception):
    """Base of everything this package raises about a file."""


class NoFile(ReaderError):
    """There is no storer's file at the path."""


class DamagedFile(ReaderError):
    """The file is something else than a storer's, or a row in it is not of the documented form."""


class VersionDiffers(ReaderError):
    """The file is of another format version than this package reads."""


class OtherLmdb(ReaderError):
    """The installed `lmdb` is of another LMDB than the storer's, or some other program's is."""


class LockNotWritable(ReaderError):
    """`lock.mdb` cannot be written, so that the storer would not see this reader."""


class ReadersFull(ReaderError):
    """All slots in the table of readers are taken."""


class MissingDatabase(ReaderError):
    """The file, of an earlier version, does not have a database."""


class NotAvailable(ReaderError):
    """The state asked for is older than what history tells."""


class NoSuchRevision(ReaderError):
    """The document has not come to that revision yet, or there is no such document."""


class StateDiffers(ReaderError):
    """A state that was rebuilt does not have the hash that the storer noted."""


class Forked(ReaderError):
    """The process was forked after it opened the file."""
