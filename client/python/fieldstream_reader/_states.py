"""Documents as they were: from history, back to a row that tells the whole state and forward again."""

from __future__ import annotations

from typing import Optional

from . import _change, _rows, _time
from ._change import Body
from ._errors import DamagedFile, NoSuchRevision, NotAvailable, StateDiffers
from ._file import Txn
from ._rows import Change, Document, State


def document_of(txn: Txn, document: str) -> Optional[Document]:
    """The current state."""
    key = document.encode()
    # LMDB takes no empty key.
    value = txn.get("documents", key) if key else None
    return None if value is None else _rows.document(key, value)


def newest_of(txn: Txn, document: str) -> Document:
    """The current state of a document that must be there."""
    newest = document_of(txn, document)
    if newest is None:
        raise NoSuchRevision(f"there is no document {document!r}, nor was there one")
    return newest


def absent(document: str) -> State:
    """The state before the first change."""
    return State(document, 0, "absent", None, None, None, None, None, None, False)


def current(row: Document) -> State:
    """The current state."""
    verified = _verify(row.id, row.revision, row.body, row.state_hash)
    return State(
        row.id, row.revision, row.kind, row.body, row.time_us, row.client, row.state_hash, row.lane, row.sequence, verified
    )


def after(row: Change, body: Body) -> State:
    """The state that a change led to."""
    verified = _verify(row.document, row.revision, body, row.state_hash)
    kind = _change.kind_of(body)
    return State(
        row.document, row.revision, kind, body, row.time_us, row.client, row.state_hash, row.lane, row.sequence, verified
    )


def _verify(document: str, revision: int, body: Body, state_hash: int) -> bool:
    found = _change.state_hash(body)
    if found is not None and found != state_hash:
        raise StateDiffers(
            f"revision {revision} of {document!r} has hash {found}, and the storer noted {state_hash}: the file is "
            "damaged, or this package cannot read it; `fieldstream storer verify` tells which"
        )
    return found is not None


def follows(row: Change, before: Optional[State]) -> Optional[State]:
    """The state after a change, if it can be told from the row and the state before it."""
    if row.has_whole_state:
        return after(row, row.body)
    if row.revision == 1 or _change.tells_whole_state(row.change):
        return after(row, _change.apply(_whole_part(row), None))
    if before is not None and before.revision + 1 == row.revision:
        return after(row, _change.apply(row.change, before.body))
    return None


def state_at(txn: Txn, document: str, revision: int) -> State:
    """The state after a revision."""
    if revision == 0:
        return absent(document)
    newest = newest_of(txn, document)
    if not 0 < revision <= newest.revision:
        raise NoSuchRevision(f"{document!r} has no revision {revision}: it is at {newest.revision}")
    rows = _back_to_whole(txn, document, revision)
    body: Body = None
    for row in reversed(rows):
        body = row.body if row.has_whole_state else _change.apply(_whole_part(row), body)
    return after(rows[0], body)


def _whole_part(row: Change) -> list[object]:
    """The change from its last primitive on that sets the whole state: what is before it does not count."""
    change = row.change
    whole = [n for n, primitive in enumerate(change) if _change.tells_whole_state([primitive])]
    return change[whole[-1] :] if whole else change


def _back_to_whole(txn: Txn, document: str, revision: int) -> list[Change]:
    """The rows from a revision back to the nearest that tells the whole state, or to revision 1."""
    rows: list[Change] = []
    for key, value in txn.rows_back("history", _rows.history_key(document, revision)):
        row_document, row_revision = _rows.parse_history_key(key)
        if row_document != document:
            break
        if row_revision != revision - len(rows):
            if rows:
                raise DamagedFile(f"history of {document!r} jumps from revision {row_revision} to {rows[-1].revision}")
            break
        row = _rows.change(key, value)
        rows.append(row)
        if row.has_whole_state or row.revision == 1 or _change.tells_whole_state(row.change):
            return rows
    first = first_revision(txn, document)
    if not rows:
        raise NotAvailable(f"revision {revision} is not available: history of {document!r} begins at revision {first}")
    raise NotAvailable(
        f"revision {revision} is not available: history of {document!r} begins at revision {first} without a whole state"
    )


def _first(txn: Txn, document: str) -> Optional[Change]:
    for key, value in txn.rows("history", _rows.history_key(document, 0)):
        return _rows.change(key, value) if _rows.parse_history_key(key)[0] == document else None
    return None


def first_revision(txn: Txn, document: str) -> Optional[int]:
    """The first revision that history has."""
    first = _first(txn, document)
    return None if first is None else first.revision


def revision_at(txn: Txn, document: str, time_us: int) -> int:
    """The revision a document was at; 0 before its first change."""
    newest = newest_of(txn, document)
    if time_us >= newest.time_us:
        return newest.revision
    first = _first(txn, document)
    if first is None:
        raise DamagedFile(f"{document!r} has no history")
    if time_us < first.time_us:
        if first.revision == 1:
            return 0
        raise NotAvailable(
            f"not available: history of {document!r} begins at revision {first.revision}, {_time.text(first.time_us)}"
        )
    # Revisions are contiguous, and time never goes back within a document.
    low, high = first.revision, newest.revision
    while low + 1 < high:
        middle = (low + high) // 2
        key = _rows.history_key(document, middle)
        value = txn.get("history", key)
        if value is None:
            raise DamagedFile(f"history of {document!r} has no revision {middle}")
        if _rows.change(key, value).time_us <= time_us:
            low = middle
        else:
            high = middle
    return low
