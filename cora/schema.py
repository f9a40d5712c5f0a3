"""What a config is checked by when it is made, and how it goes to JSON and back. Knows no field of any config."""

import dataclasses
import functools
import inspect
import json
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from cora.meaning import NONE, Only, close, hints, nearest


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


def allow(name: str, kind: Any, value: Any, default: Any = NONE) -> Any:
    """Returns the value as one of this kind, a plain number or tuple. Raises ConfigError that names the field, its
    value and the nearest legal one."""
    meant = nearest(kind, value, default)
    if meant.legal:
        raise ConfigError(f"{name} = {_short(value)}: {meant.legal}; nearest: {_short(meant.value)}")
    return meant.value


def _short(value: Any) -> str:
    """The value for a message of one line: functions and configs by their names."""
    if isinstance(value, tuple) and type(value) is tuple:
        return f"({', '.join(map(_short, value))}{',' * (len(value) == 1)})"
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return f"{type(value).__name__}(...)"
    return getattr(value, "__name__", None) or repr(value)


def check(section: str, config: Any) -> None:
    """Requires every field of a dataclass to be what its annotation allows, and those that the other choices leave
    unread (`Only`) to stand at their defaults. To be called first in `__post_init__`.

    An `Only` that names another section is looked at where that section is known: in the config that holds both.
    """
    kind: Any = type(config)
    for field in dataclasses.fields(config):
        value: Any = getattr(config, field.name)
        meant = allow(f"{section}.{field.name}", hints(kind)[field.name], value, default_of(field))
        if meant is not value:
            object.__setattr__(config, field.name, meant)
    for field in dataclasses.fields(config):
        _read(section, config, field, config, inside=True)
        inner = getattr(config, field.name)
        for own in dataclasses.fields(inner) if dataclasses.is_dataclass(inner) else ():
            _read(field.name, inner, own, config, inside=False)


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a field, `NONE` where it has none."""
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return NONE if default is dataclasses.MISSING else default


def _read(section: str, config: Any, field: dataclasses.Field, whole: Any, *, inside: bool) -> None:
    """Requires a field that nothing reads, because of another one of `whole`, to stand at its default."""
    default, kind = default_of(field), typing.cast(Any, type(config))
    for mark in getattr(hints(kind)[field.name], "__metadata__", ()):
        if not isinstance(mark, Only) or ("." not in mark.field) != inside:
            continue
        chosen = functools.reduce(getattr, mark.field.split("."), whole)
        if not mark.reads(chosen):
            value, other = getattr(config, field.name), mark.field if "." in mark.field else f"{section}.{mark.field}"
            legal = f"is {' or '.join(map(repr, mark.values))}" if mark.values else "is set"
            if value != default:
                raise ConfigError(f"{section}.{field.name} = {_short(value)}: nothing reads it unless {other} {legal}, "
                                  f"and it is {chosen!r}; nearest: {_short(default)}")


F = TypeVar("F", bound=Callable[..., Any])


def guard(build: F) -> F:
    """Returns the function, which then refuses arguments that its annotations do not allow, by name."""
    signature = inspect.signature(build)
    plain = {name for name, it in signature.parameters.items()
             if it.kind not in (it.VAR_POSITIONAL, it.VAR_KEYWORD) and it.annotation is not it.empty}

    @functools.wraps(build)
    def call(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name in filter(plain.__contains__, list(bound.arguments)):
            default = signature.parameters[name].default
            bound.arguments[name] = allow(f"{build.__name__}.{name}", hints(build)[name], bound.arguments[name],
                                          NONE if default is inspect.Parameter.empty else default)
        return build(*bound.args, **bound.kwargs)

    return typing.cast(F, call)


def choice(name: str, value: str, legal: Iterable[str]) -> None:
    """Requires one of the `legal` words."""
    words = list(legal)
    require(value in words, name, value, f"must be one of {', '.join(words)}; nearest: {close(value, words)}")


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


def _build(kind: Any, values: Any, where: str) -> Any:
    require(isinstance(values, dict), where, values, f"must be an object with the fields of {kind.__name__}")
    fields = [field.name for field in dataclasses.fields(kind)]
    for key in values:
        require(key in fields, f"{where}.{key}", values[key], f"no such field; nearest: {where}.{close(key, fields)}")
    made = {}
    for key, value in values.items():
        own = hints(kind)[key]
        inner = [one for one in (own, *typing.get_args(own)) if isinstance(one, type) and dataclasses.is_dataclass(one)]
        if inner and isinstance(value, dict):
            value = _build(inner[0], value, f"{where}.{key}")
        elif isinstance(value, list):
            value = tuple(_build(inner[0], one, f"{where}.{key}.{i}") if inner else one for i, one in enumerate(value))
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
