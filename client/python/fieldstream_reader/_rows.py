"""Rows as objects: keys and values of `docs/FORMAT.md`."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Optional

import msgpack

from . import _time
from ._change import Body
from ._errors import DamagedFile

CODE_NAMES: Mapping[int, str] = {
    1: "skipped", 2: "stale_epoch", 3: "number_reused", 4: "conflict", 5: "not_found", 6: "wrong_kind",
    7: "out_of_range", 8: "no_edits", 9: "empty_edit", 10: "number_overflow", 11: "too_large", 12: "forbidden",
    13: "invalid_document_id", 14: "invalid_instruction", 15: "unknown_instruction", 16: "not_a_number",
    17: "too_deep", 18: "too_many_watches", 19: "unavailable", 64: "undecodable", 65: "handler_panicked",
}  # fmt: skip
"""Names of the codes of refusals (below 64) and dead letters; a newer storer may know more."""

_OUTCOMES = {1: "applied", 2: "refused", 3: "dead"}


@dataclass(frozen=True)
class Format:
    """What the file is."""

    version: int
    lanes: int
    partitions: int
    storer: int
    created_at_us: int


@dataclass(frozen=True)
class LaneCheckpoint:
    """How far a lane is stored."""

    lane: int
    log_id: int
    events_sequence: int
    """Every accepted event up to this message of the lane's EVENTS is in the file, and nothing behind it."""
    instructions_sequence: int
    committed_at_us: int


@dataclass(frozen=True)
class Checkpoint:
    """How far the file is: every report is *as of* this."""

    lanes: tuple[LaneCheckpoint, ...]
    """The lanes' checkpoints, by number of the lane."""
    read_at_us: int
    """When it was read, by this machine's clock."""

    @property
    def committed_at_us(self) -> int:
        """When the newest commit was made."""
        return max(lane.committed_at_us for lane in self.lanes)

    @property
    def committed_at(self) -> datetime:
        """When the newest commit was made, in UTC."""
        return _time.from_us(self.committed_at_us)

    @property
    def behind_s(self) -> float:
        """Seconds from the newest commit until it was read. It also grows while there is nothing to store."""
        return max(0.0, (self.read_at_us - self.committed_at_us) / 1e6)

    def __str__(self) -> str:
        lanes = ", ".join(f"{lane.events_sequence} (lane {lane.lane})" for lane in self.lanes)
        return f"as of sequence {lanes}, committed {_time.text(self.committed_at_us)}, {self.behind_s:.1f} s behind"


@dataclass(frozen=True)
class Document:
    """The current state of a document, and who changed it last."""

    id: str
    revision: int
    kind: str
    """`text`, `structured`, or `absent` if it was deleted."""
    body: Body
    time_us: int
    client: str
    epoch: int
    number: int
    lane: int
    sequence: int
    state_hash: int

    @property
    def time(self) -> datetime:
        """When it changed last, in UTC."""
        return _time.from_us(self.time_us)


@dataclass(frozen=True)
class Change:
    """One change of a document, a row of its history."""

    document: str
    revision: int
    time_us: int
    client: str
    epoch: int
    number: int
    lane: int
    sequence: int
    instruction_sequence: int
    instruction_index: int
    received_at_us: int
    state_hash: int
    change: list[Any]
    """Primitive operations, as `docs/FORMAT.md` lists them."""
    has_whole_state: bool = False
    """Whether `kind` and `body`, the state after the change, come with the row."""
    kind: Optional[str] = None
    body: Body = field(default=None, repr=False)

    @property
    def time(self) -> datetime:
        """When it happened, in UTC."""
        return _time.from_us(self.time_us)


@dataclass(frozen=True)
class TimedChange:
    """One change, found by its time."""

    time_us: int
    document: str
    revision: int
    lane: int
    sequence: int
    change: Optional[Change]
    """The row of its history; `None` if that was removed already."""

    @property
    def time(self) -> datetime:
        """When it happened, in UTC."""
        return _time.from_us(self.time_us)


@dataclass(frozen=True)
class State:
    """A document as it was after a change."""

    document: str
    revision: int
    """0 before the first change."""
    kind: str
    body: Body
    time_us: Optional[int]
    client: Optional[str]
    state_hash: Optional[int]
    lane: Optional[int]
    sequence: Optional[int]
    verified: bool
    """Whether the body was compared with the storer's hash, which takes the package `xxhash`."""

    @property
    def time(self) -> Optional[datetime]:
        """When it became so, in UTC; `None` before the first change."""
        return None if self.time_us is None else _time.from_us(self.time_us)


@dataclass(frozen=True)
class Outcome:
    """What became of an instruction."""

    number: int
    content_hash: int
    kind: str
    """`applied`, `refused` or `dead`."""
    revision: Optional[int]
    """The revision an applied one made."""
    code: Optional[int]
    """Why it was refused or is dead."""

    @property
    def code_name(self) -> Optional[str]:
        """The code's name, `unknown` for one of a newer version."""
        return None if self.code is None else CODE_NAMES.get(self.code, "unknown")


@dataclass(frozen=True)
class ClientMark:
    """What a partition has seen of a client: the outcomes it may still ask for."""

    client: str
    partition: int
    epoch: int
    highest: int
    settled: int
    window: tuple[Outcome, ...]
    seen_at_us: int
    """When the newest instruction was received; 0 in files of earlier versions."""

    @property
    def refused(self) -> tuple[Outcome, ...]:
        """The refused ones of the window."""
        return tuple(outcome for outcome in self.window if outcome.kind == "refused")


@dataclass(frozen=True)
class DeadLetter:
    """A record that could not be carried out because of itself."""

    lane: int
    sequence: int
    event_index: int
    code: int
    code_name: str
    reason: str
    partition: int
    instruction_sequence: int
    instruction_index: int
    received_at_us: int
    raw: bytes = field(repr=False)
    document: Optional[str] = None
    """The document it was about; `None`, like what follows, if the record did not tell."""
    client: Optional[str] = None
    epoch: Optional[int] = None
    number: Optional[int] = None

    @property
    def received_at(self) -> datetime:
        """When the gateway received it, in UTC."""
        return _time.from_us(self.received_at_us)


def unpack(value: bytes) -> dict[str, Any]:
    """The map of a value."""
    try:
        row = msgpack.unpackb(value, strict_map_key=True)
    except ValueError as error:
        raise DamagedFile(f"a value is not MessagePack: {error}") from error
    if not isinstance(row, dict):
        raise DamagedFile("a value is not a map")
    return row


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError as error:
        raise DamagedFile(f"the key {key!r} is not UTF-8") from error


def history_key(document: str, revision: int) -> bytes:
    """The key of a change."""
    return document.encode() + b"\0" + struct.pack(">Q", revision)


def parse_history_key(key: bytes) -> tuple[str, int]:
    """Document and revision of a key."""
    if len(key) < 10 or key[-9] != 0:
        raise DamagedFile(f"{key!r} is no key of history")
    return _text(key[:-9]), int.from_bytes(key[-8:], "big")


def document(key: bytes, value: bytes) -> Document:
    """A row of `documents`."""
    row = unpack(value)
    names = ("revision", "kind", "body", "time_us", "client", "epoch", "number", "lane", "sequence", "state_hash")
    return Document(_text(key), *_fields(row, names))


def change(key: bytes, value: bytes) -> Change:
    """A row of `history`."""
    row = unpack(value)
    names = (
        "time_us", "client", "epoch", "number", "lane", "sequence", "instruction_sequence", "instruction_index",
        "received_at_us", "state_hash", "change",
    )  # fmt: skip
    whole = "body" in row
    fields = [*parse_history_key(key), *_fields(row, names), whole, row.get("kind"), row.get("body")]
    return Change(*fields)


def by_time(key: bytes, value: bytes) -> tuple[int, str, int, int, int]:
    """A row of `by_time`: time, document, revision, lane, sequence."""
    row = unpack(value)
    lane, sequence = _fields(row, ("lane", "sequence"))
    return (int.from_bytes(key[:8], "big"), *parse_history_key(key[8:]), lane, sequence)


def client(key: bytes, value: bytes) -> ClientMark:
    """A row of `clients`."""
    row = unpack(value)
    if len(key) < 3 or key[-2] != 0:
        raise DamagedFile(f"{key!r} is no key of clients")
    epoch, highest, settled, window = _fields(row, ("epoch", "highest", "settled", "window"))
    outcomes = tuple(_outcome(*entry) for entry in window)
    return ClientMark(_text(key[:-2]), key[-1], epoch, highest, settled, outcomes, row.get("seen_at_us", 0))


def _outcome(number: int, content_hash: int, outcome: list[int]) -> Outcome:
    kind, detail = outcome
    name = _OUTCOMES.get(kind, "unknown")
    is_applied = name == "applied"
    return Outcome(number, content_hash, name, detail if is_applied else None, None if is_applied else detail)


def dead_letter(key: bytes, value: bytes) -> DeadLetter:
    """A row of `dead_letters`."""
    row = unpack(value)
    if len(key) != 14:
        raise DamagedFile(f"{key!r} is no key of dead_letters")
    names = (
        "code", "code_name", "reason", "partition", "instruction_sequence", "instruction_index", "received_at_us", "raw",
    )  # fmt: skip
    optional = (row.get(name) for name in ("document", "client", "epoch", "number"))
    return DeadLetter(*struct.unpack(">HQI", key), *_fields(row, names), *optional)


def format_of(value: bytes) -> Format:
    """The row `format` of `meta`."""
    row = unpack(value)
    if row.get("name") != "fieldstream":
        raise DamagedFile("the file is not Fieldstream's")
    return Format(*_fields(row, ("version", "lanes", "partitions", "storer", "created_at_us")))


def lane_checkpoint(lane: int, value: bytes) -> LaneCheckpoint:
    """A checkpoint of `meta`."""
    row = unpack(value)
    return LaneCheckpoint(lane, *_fields(row, ("log_id", "events_sequence", "instructions_sequence", "committed_at_us")))


def now_us() -> int:
    """This machine's clock."""
    return time.time_ns() // 1000


def _fields(row: dict[str, Any], names: tuple[str, ...]) -> list[Any]:
    try:
        return [row[name] for name in names]
    except KeyError as error:
        raise DamagedFile(f"a row has no {error}") from error
