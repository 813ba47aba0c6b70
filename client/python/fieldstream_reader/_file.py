"""The open file: where it is, one read transaction at a time, a map that grows, a file that is switched."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import lmdb

from . import _rows
from ._errors import (
    DamagedFile,
    Forked,
    LockNotWritable,
    MissingDatabase,
    NoFile,
    OtherLmdb,
    ReaderError,
    ReadersFull,
    VersionDiffers,
)

FORMAT_VERSION = 1

_DATABASES_MAX = 32
# A switch between looking and opening, or a map that grows, is waited out so often.
_TRIES = 5

_OLDER = (
    "by_time: a storer of an earlier version wrote this file; let a newer one open it, then it lists the changes from "
    "there on"
)


def find(path: str) -> str:
    """The folder, perhaps through the storer's link, that `data.mdb` is in.

    A link is given back as it is, so that it shows when it is switched.
    """
    path = os.path.abspath(path)
    if os.path.basename(path) == "data.mdb":
        path = os.path.dirname(path)
    generations = os.path.dirname(path)
    link = os.path.join(os.path.dirname(generations), "db")
    if os.path.basename(generations) == "generations" and os.path.islink(link):
        return link
    for folder in (path, os.path.join(path, "db"), os.path.join(path, "storer", "db")):
        if os.path.isfile(os.path.join(folder, "data.mdb")):
            return folder
    raise NoFile(
        f"no data.mdb in {path}, in its db or in its storer/db: name the storer's folder, its link db, or the data "
        "directory of `fieldstream up`"
    )


class _Shared:
    """An LMDB environment. LMDB allows one per file and process, so readers of one file share it."""

    def __init__(self, identity: tuple[int, int], folder: str, allow_unlocked: bool) -> None:
        self.identity, self.folder, self.users, self.lock = identity, folder, 1, threading.Lock()
        self.pid = os.getpid()
        _check_lock_file(folder, allow_unlocked)
        try:
            self.env = lmdb.open(folder, readonly=True, create=False, max_dbs=_DATABASES_MAX, map_size=0)
        except lmdb.Error as error:
            raise _explained(error, folder) from error
        self.databases: dict[str, Any] = {}

    def database(self, name: str) -> Any:
        """Opens a database; no transaction may be open."""
        if name not in self.databases:
            try:
                self.databases[name] = self.env.open_db(name.encode(), create=False)
            except lmdb.NotFoundError as error:
                what = _OLDER if name == "by_time" else f"{name}: it is not a storer's file"
                raise MissingDatabase(f"{self.folder} has no database {what}") from error
        return self.databases[name]


_open: dict[tuple[int, int], _Shared] = {}
_open_lock = threading.Lock()


def _identity(folder: str) -> tuple[int, int]:
    try:
        status = os.stat(os.path.join(folder, "data.mdb"))
    except FileNotFoundError as error:
        raise NoFile(f"{folder} has no data.mdb any more") from error
    return status.st_dev, status.st_ino


def _acquire(folder: str, allow_unlocked: bool) -> _Shared:
    with _open_lock:
        identity = _identity(folder)
        shared = _open.get(identity)
        if shared is not None:
            _check_not_forked(shared)
            shared.users += 1
            return shared
        shared = _Shared(identity, folder, allow_unlocked)
        _open[identity] = shared
        return shared


def _release(shared: _Shared) -> None:
    with _open_lock:
        shared.users -= 1
        if shared.users == 0:
            _open.pop(shared.identity, None)
            # In a fork, closing would free slots in the table that are the parent's.
            if shared.pid == os.getpid():
                shared.env.close()


def _check_not_forked(shared: _Shared) -> None:
    if shared.pid != os.getpid():
        raise Forked(
            f"{shared.folder} was opened before this process was forked, and LMDB does not allow that: open it in the "
            "child only, or start processes with multiprocessing's method `spawn`"
        )


def _check_lock_file(folder: str, allow_unlocked: bool) -> None:
    if allow_unlocked:
        return
    lock = os.path.join(folder, "lock.mdb")
    try:
        flags = os.statvfs(folder).f_flag
    except FileNotFoundError as error:
        raise NoFile(f"{folder} is not there any more") from error
    # LMDB goes without locks on a filesystem that is mounted read-only, and says nothing.
    if flags & os.ST_RDONLY:
        raise LockNotWritable(
            f"{folder} is mounted read-only: the storer would not see this reader and use pages again that it is "
            "looking at. Mount it writable; if it is a copy that nobody writes, open it with allow_unlocked=True"
        )
    if not os.access(lock if os.path.exists(lock) else folder, os.W_OK):
        raise LockNotWritable(
            f"{lock} cannot be written by this user, which readers must: put the user into the storer's group "
            "(`storer.file_mode`)"
        )


def _explained(error: lmdb.Error, folder: str) -> ReaderError:
    """An error of LMDB in words."""
    if isinstance(error, lmdb.VersionMismatchError):
        return OtherLmdb(
            f"{folder}: MDB_VERSION_MISMATCH: the installed `lmdb` package, or a program that has the file open, is "
            "not of the LMDB 0.9 releases; use the package from PyPI"
        )
    if isinstance(error, lmdb.ReadersFullError):
        return ReadersFull(
            f"all slots in the table of readers of {folder} are taken: end some readers; slots of killed ones are "
            f"freed by the storer within a minute (`mdb_stat -r {folder}` lists them)"
        )
    if isinstance(error, (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError)):
        return DamagedFile(f"{folder}/data.mdb is not a file of LMDB 0.9, or it is damaged: {error}")
    if "already open in this process" in str(error):
        return ReaderError(f"{folder} is open in this process by other means than this package: close it there")
    if "No such file" in str(error):
        return NoFile(f"{folder} has no data.mdb any more")
    if "Permission denied" in str(error):
        return LockNotWritable(f"{folder}: {error}; put this user into the storer's group")
    return ReaderError(f"{folder}: {error}")


class Txn:
    """One read transaction: one consistent state."""

    def __init__(self, shared: _Shared, txn: Any) -> None:
        self._shared, self._txn = shared, txn

    def get(self, database: str, key: bytes) -> Optional[bytes]:
        """The value of a key."""
        value: Optional[bytes] = self._txn.get(key, db=self._shared.databases[database])
        return value

    def rows(self, database: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The rows from a key on."""
        with self._txn.cursor(self._shared.databases[database]) as cursor:
            if cursor.set_range(start) if start else cursor.first():
                yield from cursor

    def rows_back(self, database: str, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The row of a key, or the one in front of where it would be, and on to the beginning."""
        with self._txn.cursor(self._shared.databases[database]) as cursor:
            found = cursor.set_range(start)
            if cursor.key() == start if found else cursor.last():
                yield from cursor.iterprev()
            elif found and cursor.prev():
                yield from cursor.iterprev()


class File:
    """A storer's file. Transactions go one after the other, also those of several threads."""

    def __init__(self, path: str, allow_unlocked: bool) -> None:
        self.path = find(path)
        self._allow_unlocked = allow_unlocked
        self._shared: Optional[_Shared] = None
        self._lock = threading.Lock()
        self.format = self._check_format()

    def close(self) -> None:
        """Closes it; it may not be read any more."""
        with self._lock:
            shared, self._shared, self.path = self._shared, None, ""
        if shared is not None:
            _release(shared)

    @property
    def folder(self) -> str:
        """The folder of the file that is open, with all links resolved."""
        return self._shared.folder if self._shared else ""

    def _current(self) -> _Shared:
        """The open file; another one if the link was switched meanwhile."""
        if not self.path:
            raise ReaderError("the reader is closed")
        folder = os.path.realpath(self.path)
        if self._shared is not None:
            _check_not_forked(self._shared)
            if self._shared.identity == _identity(folder):
                return self._shared
            old, self._shared = self._shared, None
            _release(old)
        self._shared = _acquire(folder, self._allow_unlocked)
        return self._shared

    def _check_format(self) -> _rows.Format:
        with self.read("meta") as txn:
            value = txn.get("meta", b"format")
        if value is None:
            raise DamagedFile(f"{self.path} has no format row: it is not a storer's file")
        found = _rows.unpack(value).get("version")
        if found != FORMAT_VERSION:
            raise VersionDiffers(
                f"{self.path} is of format version {found}, this package reads version {FORMAT_VERSION}: install the "
                "fieldstream-reader that came with the storer"
            )
        return _rows.format_of(value)

    @contextmanager
    def read(self, *databases: str) -> Iterator[Txn]:
        """A read transaction over some databases. Keep it short."""
        with self._lock:
            shared, txn = self._begin(databases)
            try:
                yield Txn(shared, txn)
            finally:
                txn.abort()
                shared.lock.release()

    def _begin(self, databases: tuple[str, ...]) -> tuple[_Shared, Any]:
        """Begins a transaction, and holds the lock of the file that it is of."""
        tries = 0
        while True:
            tries += 1
            shared = self._opened(tries)
            if shared is None:
                continue
            shared.lock.acquire()
            try:
                for name in databases:
                    shared.database(name)
                return shared, shared.env.begin(buffers=False)
            except lmdb.MapResizedError as error:
                # The storer made the map larger: no transaction is open, as the lock is held.
                shared.env.set_mapsize(0)
                shared.lock.release()
                if tries >= _TRIES:
                    raise _explained(error, shared.folder) from error
            except lmdb.Error as error:
                shared.lock.release()
                raise _explained(error, shared.folder) from error
            except BaseException:
                shared.lock.release()
                raise

    def _opened(self, tries: int) -> Optional[_Shared]:
        try:
            return self._current()
        except NoFile:
            # Switched between looking and opening.
            if tries >= _TRIES:
                raise
            return None
