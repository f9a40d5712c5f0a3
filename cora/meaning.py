"""What an annotation allows: the nearest legal value, and why another is not it. Knows no field of any config.

One reading of annotations for every dataclass and builder: words, whole and finite numbers with their ranges, tuples
with their lengths, paths, functions, and objects of a class. Arrays and keys are left to whoever computes with them.
"""

import dataclasses
import difflib
import functools
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Protocol

STEP = 1e-8
"""How far from an end that is not itself in a range the nearest legal number is said to be."""


class Meant(NamedTuple):
    """What a value means as one of a kind: itself as a plain number, tuple, string or path, or else the nearest legal
    one and what is legal, in words."""

    value: Any
    legal: str = ""


class Mark(Protocol):
    """What an annotation says beyond the type."""

    def nearest(self, value: Any) -> Meant:
        """Returns what a value of the right type means."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; the ends belong to it unless `above` (low) or `below` (high) says that they do
    not."""

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False
    below: bool = False

    def nearest(self, value: Any) -> Meant:
        low = self.low + STEP if self.above and value <= self.low else self.low
        high = self.high - STEP if self.below and value >= self.high else self.high
        inside = min(max(value, low), high)
        if self.high == math.inf:
            legal = f"must be above {self.low}" if self.above else f"must be at least {self.low}"
        else:
            legal = f"must lie in {'(' if self.above else '['}{self.low}, {self.high}{')' if self.below else ']'}"
        return Meant(value) if inside == value else Meant(inside, legal)


@dataclasses.dataclass(frozen=True)
class Not:
    """Any number but this one; `instead` is the nearest that is meant."""

    value: int | float
    instead: int | float

    def nearest(self, value: Any) -> Meant:
        return Meant(self.instead, f"must not be {self.value}") if value == self.value else Meant(value)


@dataclasses.dataclass(frozen=True)
class Entries:
    """Tuples of at least so many entries; `least` are named where there are none."""

    least: tuple[Any, ...]

    def nearest(self, value: Any) -> Meant:
        short = len(value) < len(self.least)
        legal = f"must have {len(self.least)} or more entries"
        return Meant((*value, *self.least[len(value):]), legal) if short else Meant(value)


@dataclasses.dataclass(frozen=True)
class Rising:
    """Tuples of numbers none of which is below the one before."""

    def nearest(self, value: Any) -> Meant:
        rising = tuple(sorted(value))
        return Meant(value) if rising == value else Meant(rising, "must be (low, high) with low <= high")


@dataclasses.dataclass(frozen=True)
class Only:
    """The field is read only where another one, of its section or `section.field`, has one of these values, or any that
    counts as true where none is named. Elsewhere it must stand at its default (`schema.check`)."""

    field: str
    values: tuple[Any, ...]

    def __init__(self, field: str, *values: Any) -> None:
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "values", values)

    def reads(self, value: Any) -> bool:
        """Returns whether the field is read where the other one has this value."""
        held = value if isinstance(value, tuple) else (value,)
        return any(one in self.values for one in held) if self.values else bool(value)


@functools.cache
def hints(made: Any) -> dict[str, Any]:
    """Returns the annotation of every field or argument, with what it says beyond the type."""
    return typing.get_type_hints(made, include_extras=True)


Natural = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Positive = Annotated[float, Range(0.0, above=True)]
Weight = Annotated[float, Range(0.0)]
Share = Annotated[float, Range(0.0, 1.0)]
Fraction = Annotated[float, Range(0.0, 1.0, above=True)]
NONE: Any = object()
"""Where there is no default."""


def close(word: Any, words: Iterable[Any]) -> Any:
    """Returns the word that is most like this one, whatever the case; of numbers the nearest."""
    every = list(words)
    if isinstance(word, numbers.Real) and all(isinstance(one, numbers.Real) for one in every):
        return min(every, key=lambda one: abs(one - word))
    by_text = {str(one).lower(): one for one in every}
    return by_text[difflib.get_close_matches(str(word).lower(), by_text, n=1, cutoff=0)[0]]


def nearest(kind: Any, value: Any, default: Any = NONE) -> Meant:
    """Returns what a value means as one of this kind; the default stands where nothing is nearest (nan, say).

    A whole number is a float too, a list a tuple, a string a path and a path a string; numpy's numbers are numbers, and
    come back as plain ones. True and False are no numbers.
    """
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        meant = nearest(inner[0], value, default)
        for mark in inner[1:]:
            if isinstance(mark, Only) or not hasattr(mark, "nearest"):
                continue
            found = mark.nearest(meant.value)
            if found.legal:
                meant = Meant(nearest(inner[0], found.value, default).value, meant.legal or found.legal)
        return meant
    if origin is Literal:
        fits = any(value == word and type(value) is type(word) for word in inner)
        return Meant(value) if fits else Meant(close(value, inner), f"must be one of {', '.join(map(str, inner))}")
    if origin in (typing.Union, types.UnionType):
        return _any_of(inner, value, default)
    if origin is tuple:
        return _entries(inner, value, default)
    if kind is None or kind is type(None):
        return Meant(None, "" if value is None else "must be None")
    if kind in PLAIN:
        return PLAIN[kind](value, default)
    if origin is Callable or kind is Callable or origin is typing.get_origin(typing.Callable):
        return Meant(value) if callable(value) else _instead(default, "must be a function")
    if checks(kind):
        return _fields(kind, value, default)
    return Meant(value)


def checks(kind: Any) -> bool:
    """Returns whether values of this class can be told by it: not arrays, whose shapes others know, nor protocols."""
    return (isinstance(kind, type) and not getattr(kind, "_is_protocol", False) and kind is not object
            and not (kind.__module__ or "").startswith(("jaxtyping", "jax", "numpy", "typing")))


def _instead(default: Any, legal: str, otherwise: Any = None) -> Meant:
    return Meant(otherwise if default is NONE else default, legal)


def _any_of(kinds: tuple[Any, ...], value: Any, default: Any) -> Meant:
    """Of several kinds: the first that allows the value, or what that one says which it most looks like."""
    each = [nearest(kind, value, NONE if default is NONE or nearest(kind, default).legal else default)
            for kind in kinds]
    for meant in each:
        if not meant.legal:
            return meant
    plural = isinstance(value, (tuple, list))
    likely = [m for kind, m in zip(kinds, each, strict=True)
              if kind is not type(None) and (typing.get_origin(_bare(kind)) is tuple) == plural]
    return (likely or each)[0]


def _bare(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def _entries(kinds: tuple[Any, ...], value: Any, default: Any) -> Meant:
    spare = default if isinstance(default, tuple) else ()
    for name in getattr(value, "_fields", ()):
        if not (own := nearest(tuple[kinds], getattr(value, name))).legal:  # type: ignore[valid-type]
            return Meant(own.value, f"must be a tuple, as its .{name} is")
    if not isinstance(value, (tuple, list)) or hasattr(value, "_fields"):
        one = nearest(kinds[0], value, spare[0] if spare else NONE) if kinds else Meant(value)
        return Meant(spare if one.legal else (one.value, *spare[1:]) if len(kinds) > 1 and kinds[-1] is not ... else
                     (one.value,), "must be a tuple")
    value = tuple(value)
    if len(kinds) == 2 and kinds[1] is ...:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        missing = [spare[i] if i < len(spare) else value[-1] if value else nearest(kind, None).value
                   for i, kind in enumerate(kinds)]
        return Meant((*value, *missing[len(value):])[: len(kinds)], f"must have {len(kinds)} entries")
    each = [nearest(kind, one, spare[i] if i < len(spare) else NONE)
            for i, (kind, one) in enumerate(zip(kinds, value, strict=True))]
    wrong = next((f"entry {i} {meant.legal}" for i, meant in enumerate(each) if meant.legal), "")
    return Meant(tuple(meant.value for meant in each), wrong)


def _fields(kind: type, value: Any, default: Any) -> Meant:
    """Of a class: its objects; a NamedTuple's fields are looked at too, since it cannot look at them itself."""
    if not isinstance(value, kind):
        article = "an" if kind.__name__[0] in "AEIOU" else "a"
        return Meant(kind if default is NONE else default, f"must be {article} {kind.__name__}")
    defaults: dict[str, Any] | None = getattr(kind, "_field_defaults", None)
    if defaults is None:
        return Meant(value)
    one: Any = value
    for name, hint in hints(kind).items():
        meant = nearest(hint, getattr(value, name), defaults.get(name, NONE))
        if meant.legal:
            return Meant(one._replace(**{name: meant.value}), f"{name} = {getattr(value, name)!r} {meant.legal}")
    return Meant(value)


def _whole(value: Any, default: Any) -> Meant:
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return Meant(int(value))
    return _instead(default, "must be a whole number", 0) if (number := _read(value)) is None else \
        Meant(round(number), "must be a whole number")


def _finite(value: Any, default: Any) -> Meant:
    number = _read(value)
    if number is None:
        return _instead(default, "must be a finite number", 0.0)
    plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return Meant(number, "" if plain else "must be a finite number")


def _read(value: Any) -> float | None:
    """The finite number that a value is or spells out, None where there is none."""
    try:
        number = float(value) if isinstance(value, (numbers.Real, str)) else math.nan
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _truth(value: Any, default: Any) -> Meant:
    if isinstance(value, bool):
        return Meant(value)
    spelt = {"true": True, "false": False, "1": True, "0": False}.get(str(value).lower())
    return _instead(default, "must be True or False", False) if spelt is None else Meant(spelt, "must be True or False")


def _text(value: Any, default: Any) -> Meant:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    return Meant(value) if isinstance(value, str) else _instead(default, "must be a string", "")


def _path(value: Any, default: Any) -> Meant:
    return Meant(Path(value)) if isinstance(value, (str, os.PathLike)) else _instead(default, "must be a path", Path())


PLAIN: dict[Any, Callable[[Any, Any], Meant]] = {int: _whole, float: _finite, bool: _truth, str: _text, Path: _path}
