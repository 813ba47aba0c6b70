"""Rows in pages: one read transaction per page, and none open between two."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Generic, Optional, TypeVar

from ._rows import Checkpoint

Row = TypeVar("Row")


@dataclass(frozen=True)
class Page(Generic[Row]):
    """Rows of one read transaction: one consistent state.

    No row comes from behind `as_of`: `row.sequence <= as_of.lanes[row.lane].events_sequence`.
    """

    rows: tuple[Row, ...]
    as_of: Checkpoint


class Pages(Generic[Row]):
    """Rows, to be iterated over once or often; every iteration reads the file anew.

    Two pages may show two states, as the storer goes on between them: `pages` gives each with its
    checkpoint.
    """

    def __init__(self, begin: Callable[[], Iterator[Page[Row]]]) -> None:
        self._begin = begin
        self._as_of: Optional[Checkpoint] = None

    @property
    def as_of(self) -> Optional[Checkpoint]:
        """The checkpoint of the page that was read last; `None` before the first."""
        return self._as_of

    def pages(self) -> Iterator[Page[Row]]:
        """The pages. The last one may be empty, and tells the checkpoint all the same."""
        for page in self._begin():
            self._as_of = page.as_of
            yield page

    def __iter__(self) -> Iterator[Row]:
        for page in self.pages():
            yield from page.rows
