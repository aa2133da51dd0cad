"""From JSON back to a dataclass, strictly: a file from elsewhere may say anything."""

import types
import typing
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(kind: type[T], value: Any) -> T:
    """``value``, as :func:`json.loads` gives it, as a ``kind``.

    Understands dataclasses (unknown keys are left out, missing ones take their defaults), tuples, lists, dicts,
    unions and JSON's own types. Raises ``ValueError`` for anything else.
    """
    return typing.cast(T, _from_json(kind, value))


def _from_json(kind: Any, value: Any) -> Any:
    if kind is Any:
        return value
    if is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in args:
            try:
                return _from_json(option, value)
            except ValueError:
                continue
    elif origin in (tuple, list) and isinstance(value, list):
        if origin is list:
            return [_from_json(args[0], item) for item in value]
        if args[1:] == (...,):
            return tuple(_from_json(args[0], item) for item in value)
        if len(args) == len(value):
            return tuple(_from_json(a, item) for a, item in zip(args, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {_from_json(args[0], k): _from_json(args[1], v) for k, v in value.items()}
    elif kind is None or kind is types.NoneType:
        if value is None:
            return None
    elif kind is float and type(value) is int:
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{str(value)[:40]!r} is no {getattr(kind, '__name__', kind)}")


def _dataclass(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{str(value)[:40]!r} is no {kind.__name__}")
    hints = typing.get_type_hints(kind)
    try:
        return kind(**{f.name: _from_json(hints[f.name], value[f.name]) for f in fields(kind) if f.name in value})
    except TypeError as error:
        raise ValueError(f"{kind.__name__}: {error}") from None
