"""Times: microseconds since the Unix epoch, and aware datetimes."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Union

Time = Union[int, datetime]
"""A time: microseconds since the Unix epoch, or a `datetime` that knows its timezone."""

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def to_us(time: Time) -> int:
    """Microseconds since the Unix epoch. A `datetime` without a timezone raises `ValueError`."""
    if isinstance(time, int):
        return time
    if time.tzinfo is None:
        raise ValueError(f"{time!r} has no timezone: use datetime(..., tzinfo=timezone.utc), or .astimezone()")
    return (time - _EPOCH) // timedelta(microseconds=1)


def from_us(time_us: int) -> datetime:
    """The time as a `datetime` in UTC."""
    return _EPOCH + timedelta(microseconds=time_us)


def text(time_us: int) -> str:
    """The time as text, in UTC to the millisecond."""
    return from_us(time_us).isoformat(timespec="milliseconds").replace("+00:00", "Z")
