"""Pydantic's findings in the words of a file's author: place, what came, what was allowed, what was perhaps meant."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hwsim.document import Document, Place, describe_field
from hwsim.errors import describe_place

_UNIT_SUFFIXES = (
    "_ghz", "_mhz", "_kib", "_mib", "_gib", "_bytes", "_bits", "_us", "_ns", "_ms", "_seconds", "_pj", "_mw", "_watts",
    "_nm", "_per_byte", "_per_cycle", "_per_bit", "_volts", "_mm2",
)  # fmt: skip
_NUMBER_WITH_UNIT = re.compile(r"\s*([-+]?\d[\d_]*(?:\.\d+)?(?:[eE][-+]?\d+)?)\s*([A-Za-z%/µ²]+[\w/ %²]*)?\s*")
_PLAIN_TYPES = {
    "int": "a whole number", "float": "a number", "str": "text", "string": "text", "bool": "true or false",
    "list": "a list", "tuple": "a list", "dict": "a mapping (key: value)", "model": "a mapping (key: value)",
    "none": "nothing (null)",
}  # fmt: skip


def near(word: str, allowed: Iterable[str]) -> str:
    """Return ``. Did you mean 'x'?`` for the closest allowed word, or nothing.

    >>> near("acumulator", ("accumulator", "order"))
    ". Did you mean 'accumulator'?"
    """
    folded = {str(name).lower(): str(name) for name in allowed}
    match = difflib.get_close_matches(str(word).lower(), folded, n=1, cutoff=0.6)
    return f". Did you mean {folded[match[0]]!r}?" if match else ""


def describe_problems(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """One line per bad value, in file order: ``file:line: field: got X, expected Y. Did you mean Z?``."""
    lines = []
    for place, message in findings_of(error, model, document.data):
        line = document.line(place)
        lines.append((line or 0, describe_place(document.file, line, describe_field(place), message)))
    return list(dict.fromkeys(text for _, text in sorted(lines, key=lambda pair: pair[0])))


def findings_of(error: ValidationError, model: type[BaseModel], data: Any) -> list[tuple[Place, str]]:
    """Place and message of every bad value; `data` is what was checked against `model`."""
    findings: dict[Place, list[tuple[Place, Mapping[str, Any]]]] = {}
    for found in error.errors(include_url=False):
        place, tags = _split_tags(tuple(found["loc"]), data, found["type"] == "missing")
        findings.setdefault((*place, *_inner_place(found)), []).append((tags, found))
    return [(place, _message(place, found, model)) for place, found in _one_per_value(findings).items()]


def _split_tags(loc: Place, data: Any, missing: bool) -> tuple[Place, Place]:
    """Separate the true path from pydantic's union tags: what is not a key of the data there is a tag."""
    path: list[str | int] = []
    tags: list[str | int] = []
    for index, part in enumerate(loc):
        last = index == len(loc) - 1
        if isinstance(data, Mapping) and (part in data or (last and missing)):
            path.append(part)
            data = data.get(part)
        elif isinstance(data, Sequence) and not isinstance(data, str) and isinstance(part, int) and part < len(data):
            path.append(part)
            data = data[part]
        else:
            tags.append(part)
    return tuple(path), tuple(tags)


def _one_per_value(
    findings: dict[Place, list[tuple[Place, Mapping[str, Any]]]],
) -> dict[Place, list[Mapping[str, Any]]]:
    """Where a union tried several readings of one value, keep the reading that went furthest."""
    kept: dict[Place, list[Mapping[str, Any]]] = {}
    for place, found in findings.items():
        deeper = [other for other in findings if len(other) > len(place) and other[: len(place)] == place]
        is_union = any(tags for tags, _ in found)
        only_too_short = all(finding["type"] == "too_short" for _, finding in found)  # pydantic drops wrong entries
        if deeper and (is_union or only_too_short):
            continue
        kept[place] = [finding for _, finding in found]
    return kept


def _inner_place(found: Mapping[str, Any]) -> Place:
    if found["type"] == "field_problem":
        field = found["ctx"]["field"]
        if isinstance(field, str):
            return tuple(int(part) if part.isdigit() else part for part in field.split(".") if part)
        return tuple(field)
    return ()


def _message(place: Place, found: list[Mapping[str, Any]], model: type[BaseModel]) -> str:
    first = found[0]
    kind = first["type"]
    if kind == "extra_forbidden":
        return _unknown_key(place, model)
    if kind == "missing":
        expected = _expected_at(place, model)
        return "missing, it is required" + (f": {expected}" if expected else "")
    if kind in ("value_error", "assertion_error"):
        return str(first["ctx"]["error"]) if "ctx" in first else first["msg"]
    if kind == "field_problem":
        return str(first["ctx"]["message"])
    if kind == "union_tag_not_found":
        return f"key {_tag_name(first)} is missing, expected one of {_tag_values(place, first, model)}"
    if kind == "union_tag_invalid":
        tag = str(first["ctx"]["tag"])
        choices = [choice.strip(" '") for choice in first["ctx"]["expected_tags"].split(",")]
        return f"{_tag_name(first)}: got {tag!r}, expected one of {', '.join(choices)}{near(tag, choices)}"
    got = first["input"]
    wanted = dict.fromkeys(_expected(finding, place, model) for finding in found)
    expected = " or ".join(text for text in wanted if not any(text != other and text in other for other in wanted))
    return f"got {show_value(got)}, expected {expected}{_hint(place, got, found)}"


def _tag_name(found: Mapping[str, Any]) -> str:
    return str(found["ctx"]["discriminator"]).strip("'")


def _tag_values(place: Place, found: Mapping[str, Any], model: type[BaseModel]) -> str:
    name = _tag_name(found)
    values = []
    for member in _models_at(place, model):
        annotation = member.model_fields[name].annotation if name in member.model_fields else None
        values += [str(value) for value in get_args(annotation)]
    return ", ".join(values) or "the known kinds"


def _unknown_key(place: Place, model: type[BaseModel]) -> str:
    key = str(place[-1])
    allowed = sorted({name for member in _models_at(place[:-1], model) for name in _file_keys(member)})
    hint = near(key, allowed)
    return f"unknown key{hint}" if hint else f"unknown key, expected one of {', '.join(allowed)}"


def _file_keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _expected(found: Mapping[str, Any], place: Place, model: type[BaseModel]) -> str:
    kind, context = found["type"], found.get("ctx", {})
    if kind in ("literal_error", "enum"):
        choices = context["expected"].replace(" or ", ", ")
        return f"one of {choices}" if "," in choices else choices
    stem = kind.rsplit("_", 1)[0] if kind.endswith(("_type", "_parsing")) else kind
    if stem in ("int", "float"):
        return _expected_at(place, model) or _PLAIN_TYPES[stem]
    if kind == "int_from_float":
        return "a whole number"
    if kind == "none_required":
        return _PLAIN_TYPES["none"]
    if stem in _PLAIN_TYPES:
        return _PLAIN_TYPES[stem]
    if kind.startswith(("greater_than", "less_than")):
        return _expected_at(place, model) or found["msg"].removeprefix("Input should be ")
    if kind == "finite_number":
        return "a finite number"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        bound = "at least" if "short" in kind else "at most"
        return f"{bound} {context.get('min_length', context.get('max_length'))} entries"
    return str(found["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")


def _hint(place: Place, got: Any, found: list[Mapping[str, Any]]) -> str:
    kinds = {finding["type"] for finding in found}
    if isinstance(got, str):
        match = _NUMBER_WITH_UNIT.fullmatch(got)
        wants_number = kinds & {"int_type", "float_type", "int_parsing", "float_parsing"}
        if match and wants_number:
            name = str(next((part for part in reversed(place) if isinstance(part, str)), ""))
            unit = " (the unit is in the key)" if match[2] and name.endswith(_UNIT_SUFFIXES) else ""
            return f"{unit}. Did you mean {match[1]}?"
        expected = " ".join(finding.get("ctx", {}).get("expected", "") for finding in found)
        return near(got, re.findall(r"'([^']*)'", expected))
    if isinstance(got, bool):
        return ""
    if isinstance(got, int | float) and "string_type" in kinds:
        return f". Did you mean '{got}' in quotes?"
    return ""


def show_value(value: Any) -> str:
    """A short picture of what stood in the file."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ---- what the models say about a place


def _unwrap(annotation: Any) -> list[Any]:
    """Members of a union, without Annotated wrappers and None."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _unwrap(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [member for part in get_args(annotation) for member in _unwrap(part)]
    if isinstance(annotation, typing.TypeAliasType) if hasattr(typing, "TypeAliasType") else False:
        return _unwrap(annotation.__value__)
    return [] if annotation is type(None) else [annotation]


def _annotations_at(place: Place, model: type[BaseModel]) -> list[Any]:
    here: list[Any] = [model]
    for part in place:
        found: list[Any] = []
        for annotation in here:
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                for member in (annotation, getattr(annotation, "DESCRIBED_BY", None)):
                    for name, field in member.model_fields.items() if member else ():
                        if part in (name, field.alias):
                            found += _unwrap(field.annotation)
            else:
                entries = _entries(annotation, part)
                found += [] if entries is None else _unwrap(entries)
        here = found
    return here


def _entries(annotation: Any, part: str | int) -> Any:
    """Type of the entries of a list or mapping, its bounds included; None for anything else."""
    origin = get_origin(annotation)
    arguments = [argument for argument in get_args(annotation) if argument is not Ellipsis]
    if origin in (list, tuple, Sequence) and isinstance(part, int) and arguments:
        return arguments[0] if len(arguments) == 1 else arguments[min(part, len(arguments) - 1)]
    if origin in (dict, Mapping) and len(arguments) == 2:
        return arguments[1]
    return None


def _models_at(place: Place, model: type[BaseModel]) -> list[type[BaseModel]]:
    return [a for a in _annotations_at(place, model) if isinstance(a, type) and issubclass(a, BaseModel)]


def _expected_at(place: Place, model: type[BaseModel]) -> str | None:
    """What a field allows, bounds included: ``a positive number``, ``a whole number >= 1``, ``one of a, b``."""
    if not place:
        return None
    if isinstance(place[-1], str):
        for member in _models_at(place[:-1], model):
            for name, field in member.model_fields.items():
                if place[-1] in (name, field.alias):
                    return describe_type(field.annotation, field.metadata)
    for parent in _annotations_at(place[:-1], model):
        entries = _entries(parent, place[-1])
        if entries is not None:
            return describe_type(entries)
    return None


def describe_type(annotation: Any, metadata: Iterable[Any] = ()) -> str | None:
    """Say in words what a field of this type takes, or None where only the reader's own message can."""
    metadata = list(metadata)
    while get_origin(annotation) is Annotated:
        annotation, *more = get_args(annotation)
        metadata += more
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [describe_type(part, metadata) for part in get_args(annotation) if part is not type(None)]
        return " or ".join(dict.fromkeys(part for part in parts if part)) if all(parts) and parts else None
    kind = annotation
    if get_origin(kind) is Literal:
        choices = ", ".join(map(repr, get_args(kind)))
        return f"one of {choices}" if len(get_args(kind)) > 1 else choices
    if isinstance(kind, type) and issubclass(kind, Enum):
        return f"one of {', '.join(repr(member.value) for member in kind)}"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return _PLAIN_TYPES["dict"]
    name = getattr(get_origin(kind) or kind, "__name__", "")
    if name not in _PLAIN_TYPES or any(type(item).__name__ == "PlainValidator" for item in metadata):
        return None
    return _with_bounds(_PLAIN_TYPES[name], metadata)


def _with_bounds(noun: str, metadata: Iterable[Any]) -> str:
    bounds = []
    for item in metadata:
        parts = [item]
        if type(item).__name__ == "FieldInfo":
            parts = list(item.metadata)
        for part in parts:
            for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
                limit = getattr(part, attribute, None)
                if limit is not None:
                    bounds.append((sign, limit))
    if bounds == [(">", 0)]:
        return noun.replace("a ", "a positive ", 1)
    return noun + "".join(f"{' and' if index else ''} {sign} {limit:g}" for index, (sign, limit) in enumerate(bounds))
