"""Frames, Parquet and CSV: rows as columns with types of their own."""

from __future__ import annotations

import builtins
import csv
import json
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any, Callable

from . import _time
from ._pages import Pages

_NUMBER, _TIME, _TEXT, _BYTES, _VALUE = "number", "time", "text", "bytes", "value"

Column = tuple[str, str, Callable[[Any], Any]]


def _json(value: Any) -> str:
    """JSON; bytes, which it has no type for, as `{"$bin": "<hex>"}`."""
    return json.dumps(value, ensure_ascii=False, default=lambda raw: {"$bin": bytes(raw).hex()})


def _body(row: Any) -> Any:
    return row.body if row.body is None or isinstance(row.body, str) else _json(row.body)


def _change(row: Any) -> Any:
    return None if row.change is None else _json(row.change)


def _own(type_: str, *names: str) -> list[Column]:
    """Columns that are attributes of the row."""
    return [(name, type_, attrgetter(name)) for name in names]


def _of_change(type_: str, *names: str) -> list[Column]:
    """Columns that are attributes of the row's change, if it is still there."""

    def column(name: str) -> Column:
        return (name, type_, lambda row: getattr(row.change, name, None))

    return [column(name) for name in names]


def _time_column(name: str, attribute: str) -> Column:
    return (name, _TIME, lambda row: getattr(row, attribute) or None)


COLUMNS: Mapping[str, list[Column]] = {
    "latest": [
        ("document", _TEXT, lambda row: row.id),
        _time_column("time", "time_us"),
        *_own(_NUMBER, "revision"),
        *_own(_TEXT, "kind", "client"),
        *_own(_NUMBER, "epoch", "number", "lane", "sequence", "state_hash"),
        ("body", _TEXT, _body),
    ],
    "states": [
        *_own(_TEXT, "document"),
        _time_column("time", "time_us"),
        *_own(_NUMBER, "revision"),
        *_own(_TEXT, "kind", "client"),
        *_own(_NUMBER, "lane", "sequence", "state_hash"),
        ("body", _TEXT, _body),
    ],
    "history": [
        *_own(_TEXT, "document"),
        _time_column("time", "time_us"),
        _time_column("received_at", "received_at_us"),
        *_own(_NUMBER, "revision"),
        *_own(_TEXT, "client"),
        *_own(_NUMBER, "epoch", "number", "lane", "sequence", "instruction_sequence", "instruction_index", "state_hash"),
        ("change", _TEXT, _change),
    ],
    "changes": [
        *_own(_TEXT, "document"),
        _time_column("time", "time_us"),
        *_own(_NUMBER, "revision", "lane", "sequence"),
        *_of_change(_TEXT, "client"),
        *_of_change(_NUMBER, "number"),
        ("change", _TEXT, lambda row: None if row.change is None else _json(row.change.change)),
    ],
    "dead_letters": [
        _time_column("received_at", "received_at_us"),
        *_own(_NUMBER, "lane", "sequence", "event_index", "code"),
        *_own(_TEXT, "code_name", "reason", "document", "client"),
        *_own(_NUMBER, "number", "partition", "instruction_sequence", "instruction_index"),
        *_own(_BYTES, "raw"),
    ],
    "clients": [
        *_own(_TEXT, "client"),
        *_own(_NUMBER, "partition"),
        _time_column("seen_at", "seen_at_us"),
        *_own(_NUMBER, "epoch", "highest", "settled"),
        ("refused", _NUMBER, lambda row: len(row.refused)),
    ],
}
"""The columns of each kind of frame: name, type, and how the value is had from the row."""


def _field(path: str) -> Column:
    keys = path.split(".")

    def value(row: Any) -> Any:
        at = row.body
        for key in keys:
            at = at.get(key) if isinstance(at, dict) else None
        return _json(at) if isinstance(at, (dict, list)) else at

    return (path, _VALUE, value)


def _columns(kind: str, fields: tuple[str, ...]) -> list[Column]:
    if fields and kind not in ("latest", "states"):
        raise ValueError(f"fields are of `latest` and `states`, not of {kind!r}")
    return COLUMNS[kind] + [_field(path) for path in fields]


def _lists(rows: Iterable[Any], columns: list[Column]) -> dict[str, list[Any]]:
    lists: dict[str, list[Any]] = {name: [] for name, _, _ in columns}
    for row in rows:
        for name, _, value in columns:
            lists[name].append(value(row))
    return lists


def _need(package: str, extra: str) -> Any:
    try:
        return __import__(package)
    except ImportError as error:
        raise ImportError(f"this takes {package}: pip install 'fieldstream-reader[{extra}]'") from error


def frame(source: Pages[Any], kind: str, engine: str, fields: tuple[str, ...]) -> Any:
    """A frame of all rows."""
    columns = _columns(kind, fields)
    if engine == "pandas":
        return _pandas(_need("pandas", "pandas"), _lists(source, columns), columns)
    if engine == "polars":
        return _polars(_need("polars", "polars"), _lists(source, columns), columns)
    raise ValueError(f"no engine {engine!r}: pandas or polars")


def _pandas(pd: Any, lists: dict[str, list[Any]], columns: list[Column]) -> Any:
    dtypes = {_NUMBER: "UInt64", _TEXT: "string", _TIME: "datetime64[us, UTC]"}

    def series(name: str, type_: str) -> Any:
        values = lists[name]
        if type_ == _TIME:
            values = [None if us is None else _time.from_us(us) for us in values]
        return pd.Series(values, dtype=dtypes[type_]) if type_ in dtypes else _scalars(pd, values)

    return pd.DataFrame({name: series(name, type_) for name, type_, _ in columns})


def _scalars(pd: Any, values: list[Any]) -> Any:
    """A column of whatever documents hold: of one type if they agree."""
    return pd.Series(values, dtype=object).convert_dtypes()


def _polars(pl: Any, lists: dict[str, list[Any]], columns: list[Column]) -> Any:
    types = {_NUMBER: pl.UInt64, _TEXT: pl.String, _TIME: pl.Datetime("us", "UTC"), _BYTES: pl.Binary}

    def series(name: str, type_: str) -> Any:
        if type_ == _TIME:
            return pl.Series(name, lists[name], dtype=pl.Int64).cast(types[type_])
        if type_ in types:
            return pl.Series(name, lists[name], dtype=types[type_])
        return pl.Series(name, _alike(lists[name]), strict=False)

    return pl.DataFrame([series(name, type_) for name, type_, _ in columns])


def _alike(values: list[Any]) -> list[Any]:
    """The values if they are of one type, else all of them as text."""
    types = {type(value) for value in values if value is not None}
    if len(types) <= 1:
        return values
    if types == {int, float}:
        return [None if value is None else float(value) for value in values]
    return [value if value is None or isinstance(value, str) else _json(value) for value in values]


def to_parquet(source: Pages[Any], kind: str, path: str, fields: tuple[str, ...]) -> int:
    """Writes a Parquet file, a row group per page; fields are written as JSON text."""
    pa = _need("pyarrow", "parquet")
    import pyarrow.parquet as parquet

    types = {_NUMBER: pa.uint64(), _TEXT: pa.string(), _TIME: pa.timestamp("us", tz="UTC"), _BYTES: pa.binary()}
    columns = _columns(kind, fields)
    schema = pa.schema([(name, types.get(type_, pa.string())) for name, type_, _ in columns])
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for page in source.pages():
            lists = _lists(page.rows, columns)
            for name, type_, _ in columns:
                if type_ == _VALUE:
                    lists[name] = [None if value is None else _json(value) for value in lists[name]]
            writer.write_table(pa.table(lists, schema=schema))
            count += len(page.rows)
    return count


def to_csv(source: Pages[Any], kind: str, path: str, fields: tuple[str, ...]) -> int:
    """Writes a CSV file: times in ISO 8601, bytes in hex, nothing where there is nothing."""
    columns = _columns(kind, fields)
    count = 0
    with builtins.open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(name for name, _, _ in columns)
        for row in source:
            writer.writerow(_cell(type_, value(row)) for _, type_, value in columns)
            count += 1
    return count


def _cell(type_: str, value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    if type_ == _TIME:
        return _time.from_us(value).isoformat(timespec="microseconds")
    if isinstance(value, bytes):
        return value.hex()
    return _json(value) if type_ == _VALUE else value
