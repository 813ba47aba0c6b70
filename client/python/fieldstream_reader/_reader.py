"""The reader: what one asks a storer's file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Callable, Optional, TypeVar, Union

from . import _frame, _rows, _states
from ._errors import DamagedFile, NotAvailable
from ._file import File, Txn
from ._pages import Page, Pages
from ._rows import Change, Checkpoint, ClientMark, DeadLetter, Document, Format, LaneCheckpoint, State, TimedChange
from ._time import Time, to_us

Row = TypeVar("Row")

_PAGE_ROWS = 1000
_PAGE_BYTES = 8 << 20
_REVISION_MAX = 2**64 - 1


def open(path: Union[str, os.PathLike[str]], *, allow_unlocked: bool = False) -> Reader:
    """Opens a storer's file, to be closed again or used with `with`.

    `path` is the storer's link `db` or what it points to, the storer's folder, the data directory of
    `fieldstream up`, or a copy. A link is followed when it is switched to another file.

    `allow_unlocked` also takes a file on a filesystem that is mounted read-only: only for copies, which
    nobody writes.

    Raises a `ReaderError` that says what is in the way.
    """
    return Reader(os.fspath(path), allow_unlocked=allow_unlocked)


class Reader:
    """A storer's file, open for reading; `open` makes one.

    Methods that give `Pages` read page by page: one short read transaction each, none between two. So a
    slow loop does not make the file grow, and a loop that is left early leaves nothing behind. Several
    readers and threads of a process may read a file; it must not be used across a fork.
    """

    def __init__(self, path: str, *, allow_unlocked: bool = False) -> None:
        self._file = File(path, allow_unlocked)

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; further calls raise `ReaderError`."""
        self._file.close()

    @property
    def format(self) -> Format:
        """What the file was when it was opened: version, lanes, the storer's number."""
        return self._file.format

    @property
    def path(self) -> str:
        """The folder that is read at present, with links resolved."""
        return self._file.folder

    def checkpoint(self) -> Checkpoint:
        """How far the file is, per lane, and how many seconds ago its newest commit was made."""
        with self._file.read("meta") as txn:
            return _checkpoint(txn)

    def get(self, document: str) -> Optional[Document]:
        """The current state of a document; of kind `absent` if it was deleted, `None` if it never was."""
        with self._file.read("documents") as txn:
            return _states.document_of(txn, document)

    def latest(self, prefix: str = "", include_absent: bool = False) -> Pages[Document]:
        """The current state of the documents whose ids begin with `prefix`, by id."""
        begins = prefix.encode()

        def decode(_: Txn, key: bytes, value: bytes) -> Optional[Document]:
            row = _rows.document(key, value)
            return row if include_absent or row.kind != "absent" else None

        return self._pages("documents", begins, lambda key: not key.startswith(begins), decode)

    def history(
        self, document: str, from_revision: Optional[int] = None, to_revision: Optional[int] = None
    ) -> Pages[Change]:
        """The changes of a document that its history still has, both ends included, by revision.

        Old ones go from the front, also between two pages.
        """
        first = _rows.history_key(document, from_revision or 0)
        last = _rows.history_key(document, _REVISION_MAX if to_revision is None else to_revision)
        return self._pages("history", first, lambda key: key > last, lambda _, key, value: _rows.change(key, value))

    def at(self, document: str, revision: Optional[int] = None, time: Optional[Time] = None) -> State:
        """A document as it was after a revision, or at a time, or as it is.

        The body is compared with the storer's hash if the package `xxhash` is installed. Before its first
        change a document is at revision 0 and absent.

        Raises `NotAvailable` if history does not reach back so far, and `NoSuchRevision` for a revision
        that is not there yet and a document that never was.
        """
        if revision is not None and time is not None:
            raise ValueError("either a revision or a time")
        with self._file.read("documents", "history") as txn:
            if time is not None:
                revision = _states.revision_at(txn, document, to_us(time))
            if revision is None:
                return _states.current(_states.newest_of(txn, document))
            return _states.state_at(txn, document, revision)

    def states(
        self, document: str, from_revision: Optional[int] = None, to_revision: Optional[int] = None
    ) -> Pages[State]:
        """A document as it was after each revision that history still tells, both ends included."""
        last = _rows.history_key(document, _REVISION_MAX if to_revision is None else to_revision)
        first = _rows.history_key(document, from_revision or 0)
        before: Optional[State] = None

        def decode(txn: Txn, key: bytes, value: bytes) -> Optional[State]:
            nonlocal before
            row = _rows.change(key, value)
            try:
                before = _states.follows(row, before) or _states.state_at(txn, document, row.revision)
            except NotAvailable:
                # History of a file of an earlier version, in front of the first whole state.
                return None
            return before

        return self._pages("history", first, lambda key: key > last, decode, ("documents",))

    def changes(self, since: Optional[Time] = None, until: Optional[Time] = None, prefix: str = "") -> Pages[TimedChange]:
        """The changes from `since` on and before `until`, of documents whose ids begin with `prefix`, by time.

        Changes of different documents may be stored in another order than that of their times: who asks
        again and again begins some seconds before where it ended. `changes_begin_at_us` tells how far back
        they are listed.

        Raises `MissingDatabase` for a file of an earlier version.
        """
        first_us = 0 if since is None else max(0, to_us(since))
        until_us = _REVISION_MAX if until is None else to_us(until)

        def decode(txn: Txn, key: bytes, value: bytes) -> Optional[TimedChange]:
            time_us, document, revision, lane, sequence = _rows.by_time(key, value)
            if not document.startswith(prefix):
                return None
            row_key = _rows.history_key(document, revision)
            row = txn.get("history", row_key)
            change = None if row is None else _rows.change(row_key, row)
            return TimedChange(time_us, document, revision, lane, sequence, change)

        begin = first_us.to_bytes(8, "big")
        return self._pages("by_time", begin, lambda key: int.from_bytes(key[:8], "big") >= until_us, decode, ("history",))

    def changes_begin_at_us(self) -> Optional[int]:
        """The time of the first change that `changes` lists; `None` if there is none.

        Raises `MissingDatabase` for a file of an earlier version.
        """
        with self._file.read("by_time") as txn:
            for key, _ in txn.rows("by_time", b""):
                return int.from_bytes(key[:8], "big")
        return None

    def dead_letters(self, lane: Optional[int] = None) -> Pages[DeadLetter]:
        """The records that could not be carried out because of themselves, of one lane or of all, as they came."""
        begin = b"" if lane is None else lane.to_bytes(2, "big")
        return self._pages(
            "dead_letters",
            begin,
            lambda key: not key.startswith(begin),
            lambda _, key, value: _rows.dead_letter(key, value),
        )

    def clients(self, prefix: str = "") -> Pages[ClientMark]:
        """What the partitions have seen of the clients whose ids begin with `prefix`, by client and partition."""
        begins = prefix.encode()
        return self._pages(
            "clients",
            begins,
            lambda key: not key.startswith(begins),
            lambda _, key, value: _rows.client(key, value),
        )

    def frame(self, kind: str, engine: str = "pandas", fields: tuple[str, ...] = (), **arguments: Any) -> Any:
        """A `pandas.DataFrame` or `polars.DataFrame` of what a method gives.

        `kind` is the method: `latest`, `history`, `states`, `changes`, `dead_letters` or `clients`;
        `arguments` are its. Times are UTC timestamps to the microsecond; a structured body is JSON. With
        `fields`, such as `("temperature_c", "burner.on")`, of `latest` and `states`, these values of structured
        documents are columns of their own.

        Everything is in memory at once: for more than that use `to_parquet` or `to_csv`.
        """
        return _frame.frame(self._source(kind, arguments), kind, engine, tuple(fields))

    def to_parquet(self, kind: str, path: str, fields: tuple[str, ...] = (), **arguments: Any) -> int:
        """Writes what `frame` would give to a Parquet file, page by page, and returns the number of rows.

        Takes the package `pyarrow`.
        """
        return _frame.to_parquet(self._source(kind, arguments), kind, path, tuple(fields))

    def to_csv(self, kind: str, path: str, fields: tuple[str, ...] = (), **arguments: Any) -> int:
        """Writes what `frame` would give to a CSV file, page by page, and returns the number of rows."""
        return _frame.to_csv(self._source(kind, arguments), kind, path, tuple(fields))

    def _source(self, kind: str, arguments: dict[str, Any]) -> Pages[Any]:
        if kind not in _frame.COLUMNS:
            raise ValueError(f"no frame {kind!r}: it is one of {', '.join(_frame.COLUMNS)}")
        source: Pages[Any] = getattr(self, kind)(**arguments)
        return source

    def _pages(
        self,
        database: str,
        start: bytes,
        is_over: Callable[[bytes], bool],
        decode: Callable[[Txn, bytes, bytes], Optional[Row]],
        more: tuple[str, ...] = (),
    ) -> Pages[Row]:
        def begin() -> Iterator[Page[Row]]:
            at: Optional[bytes] = start
            while at is not None:
                with self._file.read("meta", database, *more) as txn:
                    rows, at = _page(txn, database, at, is_over, decode)
                    as_of = _checkpoint(txn)
                yield Page(tuple(rows), as_of)

        return Pages(begin)


def _page(
    txn: Txn,
    database: str,
    start: bytes,
    is_over: Callable[[bytes], bool],
    decode: Callable[[Txn, bytes, bytes], Optional[Row]],
) -> tuple[list[Row], Optional[bytes]]:
    """Rows from a key on, and the key to go on at; `None` at the end."""
    rows: list[Row] = []
    seen = size_bytes = 0
    for key, value in txn.rows(database, start):
        if is_over(key):
            break
        seen += 1
        size_bytes += len(value)
        row = decode(txn, key, value)
        if row is not None:
            rows.append(row)
        if seen >= _PAGE_ROWS or size_bytes >= _PAGE_BYTES:
            return rows, key + b"\0"
    return rows, None


def _checkpoint(txn: Txn) -> Checkpoint:
    lanes: list[LaneCheckpoint] = []
    for key, value in txn.rows("meta", b"checkpoint/"):
        if not key.startswith(b"checkpoint/"):
            break
        lanes.append(_rows.lane_checkpoint(len(lanes), value))
    if not lanes:
        raise DamagedFile("the file has no checkpoint: it is not a storer's file")
    return Checkpoint(tuple(lanes), _rows.now_us())
