"""Changes: the primitive operations of `docs/FORMAT.md`, and the state hash."""

from __future__ import annotations

from typing import Any, Callable, Optional

import msgpack

from ._errors import DamagedFile

Body = Any
"""A document's body: `str`, `dict` with text keys, or `None` if it is absent."""

_SET_TEXT, _SET_MAP, _APPEND, _SPLICE, _MERGE, _SET_AT, _DELETE = range(1, 8)
_LENGTHS = {_SET_TEXT: 2, _SET_MAP: 2, _APPEND: 2, _SPLICE: 2, _MERGE: 2, _SET_AT: 3, _DELETE: 1}


def tells_whole_state(change: list[Any]) -> bool:
    """Whether the state after the change can be told from the change alone."""
    return any(primitive[:1] in ([_SET_TEXT], [_SET_MAP], [_DELETE]) for primitive in change)


def apply(change: list[Any], body: Body) -> Body:
    """The body after a change. `body` itself is left as it is."""
    for primitive in change:
        body = _apply_one(primitive, body)
    return body


def _apply_one(primitive: list[Any], body: Body) -> Body:
    tag = primitive[0] if primitive and isinstance(primitive[0], int) else 0
    if _LENGTHS.get(tag) != len(primitive):
        raise DamagedFile(f"{primitive!r} is not a primitive operation that this package knows")
    if tag in (_SET_TEXT, _SET_MAP):
        return primitive[1]
    if tag == _DELETE:
        return None
    if tag == _APPEND and (body is None or isinstance(body, str)):
        return (body or "") + primitive[1]
    if tag == _SPLICE and isinstance(body, str):
        return _splice(body, primitive[1])
    if tag == _MERGE and (body is None or isinstance(body, dict)):
        return _merge(body or {}, primitive[1])
    if tag == _SET_AT and (body is None or isinstance(body, dict)):
        return _set_at(body or {}, primitive[1], primitive[2])
    raise DamagedFile(f"primitive operation {tag} does not fit a body that is {kind_of(body)}")


def _splice(text: str, edits: list[Any]) -> str:
    # Python's strings count code points, as positions do.
    for position, deleted, inserted in edits:
        if position + deleted > len(text):
            raise DamagedFile("an edit reaches behind the end of the text")
        text = text[:position] + inserted + text[position + deleted :]
    return text


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            inner = merged.get(key)
            merged[key] = _merge(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _set_at(target: dict[str, Any], path: list[str], value: Any) -> dict[str, Any]:
    if not path:
        raise DamagedFile("a path without keys")
    changed = dict(target)
    if len(path) == 1:
        changed[path[0]] = value
        return changed
    inner = changed.get(path[0], {})
    if not isinstance(inner, dict):
        raise DamagedFile(f"the path goes through {path[0]!r}, which is no map")
    changed[path[0]] = _set_at(inner, path[1:], value)
    return changed


def kind_of(body: Body) -> str:
    """`absent`, `text` or `structured`."""
    if body is None:
        return "absent"
    return "text" if isinstance(body, str) else "structured"


def _sorted(value: Any) -> Any:
    """The value with all maps in the order of their keys: code points sort as UTF-8 does."""
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _find_xxh3() -> Optional[Callable[[bytes], int]]:
    try:
        import xxhash
    except ImportError:
        return None
    digest: Callable[[bytes], int] = xxhash.xxh3_64_intdigest
    return digest


_xxh3 = _find_xxh3()


def state_hash(body: Body) -> Optional[int]:
    """The state hash of a body; `None` without the package `xxhash`."""
    if _xxh3 is None:
        return None
    if body is None:
        return _xxh3(b"\0")
    if isinstance(body, str):
        return _xxh3(b"\1" + body.encode())
    packed: bytes = msgpack.packb(_sorted(body), use_bin_type=True)
    return _xxh3(b"\2" + packed)
