"""Reads a Fieldstream storer's LMDB file, also while the storer writes it.

    import fieldstream_reader

    with fieldstream_reader.open("fieldstream-data") as reader:
        print(reader.checkpoint())
        for document in reader.latest("site7/"):
            print(document.id, document.revision, document.body)

`Reader` is where to go on; `docs/FORMAT.md` of Fieldstream is what it is made from. Times are
microseconds since the Unix epoch (`_us`); arguments that are times may be aware `datetime`s too.
"""

from ._errors import (
    DamagedFile,
    Forked,
    LockNotWritable,
    MissingDatabase,
    NoFile,
    NoSuchRevision,
    NotAvailable,
    OtherLmdb,
    ReaderError,
    ReadersFull,
    StateDiffers,
    VersionDiffers,
)
from ._pages import Page, Pages
from ._reader import Reader, open
from ._rows import (
    CODE_NAMES,
    Change,
    Checkpoint,
    ClientMark,
    DeadLetter,
    Document,
    Format,
    LaneCheckpoint,
    Outcome,
    State,
    TimedChange,
)
from ._time import from_us, to_us

__all__ = [
    "CODE_NAMES",
    "Change",
    "Checkpoint",
    "ClientMark",
    "DamagedFile",
    "DeadLetter",
    "Document",
    "Forked",
    "Format",
    "LaneCheckpoint",
    "LockNotWritable",
    "MissingDatabase",
    "NoFile",
    "NoSuchRevision",
    "NotAvailable",
    "OtherLmdb",
    "Outcome",
    "Page",
    "Pages",
    "Reader",
    "ReaderError",
    "ReadersFull",
    "State",
    "StateDiffers",
    "TimedChange",
    "VersionDiffers",
    "from_us",
    "open",
    "to_us",
]
