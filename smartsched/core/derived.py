"""Forms of structs and what they are made of, derived from the types of their fields.

For what this very version writes and reads itself; what others read, or later versions, is said
field by field (forms.py, records.py). A field at its default is left out. Named tuples become lists
of their parts, dictionaries lists of their pairs, and one of several classes gets its name before
it.
"""

import typing
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cache
from typing import Any

from msgspec import NODEFAULT, Struct
from msgspec.structs import FieldInfo, fields

from smartsched.core.forms import Form

_PLAIN = (str, bool, int, float, type(None))
_SEQUENCES = (list, tuple, deque, set, frozenset)
_UNIONS = (typing.Union, type(int | None))  # the second has no name but in `types`
_Convert = Callable[[Any], Any]


@cache
def form_of(hint: Any) -> Form:
    """Raises TypeError for a type of which it is not known how to write it."""
    hint = _bare(hint)
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if _is_plain(hint):
        return Form(_same, _same)
    if origin in _UNIONS:
        return _of_union(parts)
    if origin in _SEQUENCES:
        return _of_items(origin, form_of(parts[0]))
    if origin in (dict, Counter):
        return _of_pairs(origin, form_of(parts[0]), form_of(parts[1] if origin is dict else int))
    if isinstance(hint, type):
        return _of_class(hint)
    raise TypeError(f"it is not known how to write {hint!r}")


def of_fields(kind: Any, names: Sequence[str]) -> Form:
    """Of a struct, these fields; what is read are the values of those that were written."""
    hints = typing.get_type_hints(kind)
    known = {field.name: field for field in fields(kind)}
    writers = [(name, form_of(hints[name]).to_json, _default(known[name])) for name in names]
    readers = {name: form_of(hints[name]).of_json for name in names}

    def to_json(value: Any) -> dict[str, Any]:
        found = {}
        for name, write, default in writers:
            part = getattr(value, name)
            if part is not default and part != default:
                found[name] = write(part)
        return found

    def of_json(found: Any) -> Any:
        return {name: readers[name](part) for name, part in found.items()}

    return Form(to_json, of_json)


def fingerprint(kind: Any) -> str:
    """Another one, as soon as anything that it is made of has another field or type."""
    seen: dict[str, str] = {}
    _describe(kind, seen)
    return f"{zlib.crc32(repr(sorted(seen.items())).encode()):08x}"


def _describe(hint: Any, seen: dict[str, str]) -> None:
    hint = _bare(hint)
    for part in typing.get_args(hint):
        _describe(part, seen)
    if not isinstance(hint, type) or hint.__module__ == "builtins" or hint.__qualname__ in seen:
        return
    hints = typing.get_type_hints(hint)
    known = fields(hint) if issubclass(hint, Struct) else ()
    defaults = [(f.name, d) for f in known if (d := _default(f)) is not NODEFAULT]
    seen[hint.__qualname__] = repr((sorted((n, repr(h)) for n, h in hints.items()), defaults))
    for each in hints.values():
        _describe(each, seen)


def _bare(hint: Any) -> Any:
    """Without the name that a NewType gives it."""
    while hasattr(hint, "__supertype__"):
        hint = hint.__supertype__
    return type(None) if hint is None else hint


def _is_plain(hint: Any) -> bool:
    """Whether JSON has just that."""
    hint = _bare(hint)
    if typing.get_origin(hint) in _UNIONS:
        return all(map(_is_plain, typing.get_args(hint)))
    return hint in _PLAIN or typing.get_origin(hint) is typing.Literal


def _same(value: Any) -> Any:
    return value


def _of_class(kind: Any) -> Form:
    if issubclass(kind, IntEnum):
        return Form(int, kind)
    if issubclass(kind, tuple):
        return _of_named_tuple(kind)
    write, read = of_fields(kind, [field.name for field in fields(kind)])
    return Form(write, lambda found: kind(**read(found)))


def _of_union(parts: tuple[Any, ...]) -> Form:
    kinds = {part.__name__: part for part in map(_bare, parts) if part is not type(None)}
    if len(kinds) == 1:
        write, read = form_of(next(iter(kinds.values())))
        return Form(
            lambda value: None if value is None else write(value),
            lambda value: None if value is None else read(value),
        )
    forms = {name: form_of(kind) for name, kind in kinds.items()}

    def to_json(value: Any) -> Any:
        name = type(value).__name__
        return None if value is None else [name, forms[name].to_json(value)]

    return Form(to_json, lambda found: None if found is None else forms[found[0]].of_json(found[1]))


def _of_items(kind: _Convert, item: Form) -> Form:
    write, read = item
    return Form(
        lambda values: [write(value) for value in values],
        lambda found: kind([read(each) for each in found]),
    )


def _of_pairs(kind: _Convert, key: Form, value: Form) -> Form:
    return Form(
        lambda them: [[key.to_json(k), value.to_json(v)] for k, v in them.items()],
        lambda found: kind({key.of_json(k): value.of_json(v) for k, v in found}),
    )


def _of_named_tuple(kind: Any) -> Form:
    hints = typing.get_type_hints(kind)
    if all(map(_is_plain, hints.values())):
        return Form(list, lambda found: kind(*found))
    forms = [form_of(hint) for hint in hints.values()]
    return Form(
        lambda value: [form.to_json(part) for form, part in zip(forms, value, strict=True)],
        lambda found: kind(*(form.of_json(part) for form, part in zip(forms, found, strict=True))),
    )


def _default(field: FieldInfo) -> Any:
    """NODEFAULT: it always has to be said."""
    return field.default if field.default_factory is NODEFAULT else field.default_factory()
