"""What a config is checked by when it is made, and how it goes to JSON and back. Knows no field of any config."""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable
from typing import Any, TypeVar


class ConfigError(ValueError):
    """A field has a value that cannot be meant; the message names field, value and the nearest legal choice."""


def require(ok: bool, name: str, value: object, legal: str) -> None:
    """Raises ConfigError that names the field, its value and what is legal, unless `ok`."""
    if not ok:
        raise ConfigError(f"{name} = {value!r}: {legal}")


def divisor(whole: int, near: int) -> int:
    """Returns the divisor of `whole` that is nearest to `near`, the smaller of two that are equally near."""
    return min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: abs(n - near))


def multiple(name: str, value: int, of: int, why: str) -> None:
    """Requires a positive multiple of `of`."""
    near = max(of, round(value / of) * of)
    require(value > 0 and value % of == 0, name, value, f"must be a multiple of {of} ({why}); nearest: {near}")


def fraction(name: str, value: float) -> None:
    """Requires a number in (0, 1]."""
    require(0 < value <= 1, name, value, f"must lie in (0, 1]; nearest: {min(max(value, 0.01), 1.0)}")


def span(name: str, value: tuple[float, float], low: float, high: float) -> None:
    """Requires (a, b) with low <= a <= b <= high."""
    ok = low <= value[0] <= value[1] <= high
    require(ok, name, value, f"must be (low, high) with {low} <= low <= high <= {high}")


def positive(section: str, config: object, *names: str) -> None:
    """Requires these fields of a section to be positive."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{section}.{name}", value, "must be positive")


def choice(name: str, value: str, legal: Iterable[str]) -> None:
    """Requires one of the `legal` words."""
    words = list(legal)
    near = difflib.get_close_matches(value, words, n=1, cutoff=0)
    require(value in words, name, value, f"must be one of {', '.join(words)}; nearest: {near[0]}")


T = TypeVar("T")


def to_json(config: Any) -> str:
    """Returns the config as indented JSON; `from_json` turns it back into an equal config."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(kind: type[T], text: str) -> T:
    """Returns the config of type `kind` that `to_json` wrote. Raises ConfigError for a key that is unknown."""
    return _build(kind, json.loads(text), kind.__name__.lower())


def unsaid(kind: type, text: str) -> list[str]:
    """Returns the dotted fields of which a text of `to_json` says nothing, as one of an earlier checkout may not:
    `from_json` gives them today's defaults."""
    said = _flat(json.loads(text))
    return [name for name in _flat(dataclasses.asdict(from_json(kind, text))) if name not in said]


def _build(kind: Any, values: dict[str, Any], where: str) -> Any:
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1, cutoff=0) or list(fields)[:1]
            raise ConfigError(f"{where}.{key} = {values[key]!r}: no such field; nearest: {where}.{near[0]}")
    made = {}
    for key, value in values.items():
        inner = [kind for kind in (hints[key], *typing.get_args(hints[key])) if dataclasses.is_dataclass(kind)]
        if inner and isinstance(value, dict):
            value = _build(inner[0], value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(_build(inner[0], v, f"{where}.{key}.{i}") if inner else v for i, v in enumerate(value))
        made[key] = value
    return kind(**made)


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """Returns {dotted field: (old value, new value)} for every field in which two configs differ."""
    a, b = _flat(dataclasses.asdict(old)), _flat(dataclasses.asdict(new))
    return {k: (a.get(k), b.get(k)) for k in sorted(a | b) if a.get(k) != b.get(k)}


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat
