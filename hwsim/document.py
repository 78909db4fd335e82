"""Text to plain data: YAML 1.2 and strict JSON, with the line number of every value.

Only what JSON can say is accepted (mappings with text keys, lists, text, numbers, true, false, null), so a file has
one reading. Refused with file and line: duplicate keys, infinities and NaN, custom tags, merge keys, a second
document, nesting that is too deep, and anything a parser stumbles over.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hwsim.errors import SpecError, describe_place

Place = tuple[str | int, ...]  # ("memories", 1, "bytes_per_cycle")

_MAX_DEPTH = 64
_MAX_VALUES = 200_000  # aliases can make a short file huge
_TAG = "tag:yaml.org,2002:"
_MAX_LOCATED_JSON = 4_000_000  # characters; line numbers in larger JSON files are not worth the wait


@dataclass(frozen=True)
class Document:
    """Plain data and where each value stands: ``lines[("memories", 1)]`` is a line number counted from 1."""

    data: Any
    lines: dict[Place, int]
    file: str | None

    def line(self, place: Place) -> int | None:
        """Line of the value at `place`, or of its nearest ancestor (a missing key takes its parent's line)."""
        for length in range(len(place), -1, -1):
            if place[:length] in self.lines:
                return self.lines[place[:length]]
        return None


def is_path(name: str) -> bool:
    """Whether a name in a file means a file of the user's own: it has a slash or a file's ending."""
    return "/" in name or name.endswith((".py", ".yaml", ".yml", ".json", ".csv"))


def describe_field(place: Place) -> str:
    """Write a place as users do: ``memories[1].bytes_per_cycle``."""
    text = ""
    for part in place:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def read_text(path: Path | str) -> str:
    """Read a UTF-8 file; SpecError if it is missing, a folder, unreadable or not text."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise SpecError(f"{path}: is a folder, expected a file") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_yaml(text: str, file: str | None = None) -> Document:
    """Parse one YAML 1.2 document.

    Raises:
        SpecError: the text is not YAML, or says something that JSON could not (see the module's docstring).
    """
    from ruamel.yaml import YAML  # only file readers pay for it
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    yaml = YAML(typ="safe", pure=True)
    try:
        root = yaml.compose(text)
        return _YamlReader(file).read(root)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else None
        what = ": ".join(part for part in (error.context, error.problem) if part)
        raise SpecError.at(file, line, None, f"not valid YAML: {' '.join(what.split())}") from None
    except RecursionError:
        raise SpecError.at(file, None, None, f"nested too deeply, expected at most {_MAX_DEPTH} levels") from None
    except YAMLError as error:
        raise SpecError.at(file, None, None, f"not valid YAML: {' '.join(str(error).split())}") from None


class _YamlReader:
    """Turns ruamel's node tree into plain data, remembering lines and collecting problems."""

    def __init__(self, file: str | None) -> None:
        self.file = file
        self.lines: dict[Place, int] = {}
        self.problems: list[str] = []
        self.values = 0

    def read(self, root: Any) -> Document:
        data = None if root is None else self.value(root, ())
        if self.problems:
            raise SpecError(*self.problems)
        return Document(data, self.lines, self.file)

    def complain(self, node: Any, place: Place, message: str) -> None:
        line = node.start_mark.line + 1
        self.problems.append(describe_place(self.file, line, describe_field(place), message))

    def value(self, node: Any, place: Place) -> Any:
        self.values += 1
        if self.values > _MAX_VALUES:
            raise SpecError.at(self.file, None, None, f"holds more than {_MAX_VALUES} values (aliases count each use)")
        if len(place) > _MAX_DEPTH:
            raise RecursionError
        self.lines.setdefault(place, node.start_mark.line + 1)
        tag = str(node.tag or "")
        if isinstance(node.value, str):
            return self.scalar(node, tag, place)
        if not tag.startswith(_TAG):
            self.complain(node, place, f"got the tag {tag}, expected plain values without tags")
            return None
        if tag == _TAG + "map":
            return self.mapping(node, place)
        return [self.value(item, (*place, index)) for index, item in enumerate(node.value)]

    def mapping(self, node: Any, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key, str):
                self.complain(key_node, place, "got a list or mapping as a key, expected text")
                continue
            if str(key_node.tag) == _TAG + "merge":
                self.complain(key_node, place, "got the merge key '<<', expected the keys written out")
                continue
            here = (*place, key)
            if key in data:
                self.complain(key_node, here, f"stands twice, first in line {self.lines[here]}")
                continue
            self.lines[here] = key_node.start_mark.line + 1
            data[key] = self.value(value_node, here)
        return data

    def scalar(self, node: Any, tag: str, place: Place) -> Any:
        text: str = node.value
        kind = tag.removeprefix(_TAG)
        if kind in ("str", "timestamp", "value"):
            return text
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        try:
            if kind == "int":
                return _whole_number(text)
            if kind == "float":
                return self.number(node, text, place)
        except ValueError:
            self.complain(node, place, f"got {text[:40]!r}, which is no number that hwsim can read")
            return None
        self.complain(node, place, f"got the tag {tag}, expected a plain value without a tag")
        return None

    def number(self, node: Any, text: str, place: Place) -> float | int | None:
        plain = text.replace("_", "").lower()
        number = float(plain.replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(number):
            self.complain(node, place, f"got {text}, expected a finite number")
            return None
        # 1e9 means a whole number where a count is expected; 1.0 stays a fraction
        return int(number) if "." not in plain and number.is_integer() and abs(number) < 2**53 else number


def _whole_number(text: str) -> int:
    plain = text.replace("_", "").lower()
    sign = -1 if plain.startswith("-") else 1
    digits = plain.lstrip("+-")
    for prefix, radix in (("0x", 16), ("0o", 8), ("0b", 2)):
        if digits.startswith(prefix):
            return sign * int(digits[2:], radix)
    return sign * int(digits, 10)


class _JsonProblemError(Exception):
    """Raised by the hooks below, which do not know the place."""


def parse_json(text: str, file: str | None = None) -> Document:
    """Parse strict JSON: no NaN or infinity, no duplicate keys.

    Raises:
        SpecError: with the line of what is wrong, as far as the parser knows it.
    """

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        data = dict(items)
        if len(data) < len(items):
            keys = [key for key, _ in items]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise _JsonProblemError(f"key {twice!r} stands twice in one mapping")
        return data

    def constant(name: str) -> None:
        raise _JsonProblemError(f"got {name}, expected a finite number")

    def number(literal: str) -> float:
        value = float(literal)
        if not math.isfinite(value):
            raise _JsonProblemError(f"got {literal[:40]}, expected a number that float64 can hold")
        return value

    try:
        data = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except json.JSONDecodeError as error:
        ended = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
        where = "cut short, " if ended else ""
        raise SpecError.at(file, error.lineno, None, f"not valid JSON: {where}{_lower_first(error.msg)}") from None
    except _JsonProblemError as error:
        raise SpecError.at(file, None, None, str(error)) from None
    except RecursionError:
        raise SpecError.at(file, None, None, "nested too deeply") from None
    except ValueError:  # Python refuses to convert integers of thousands of digits
        raise SpecError.at(file, None, None, "holds a whole number too long to read") from None
    return Document(data, {}, file)


def locate_json(text: str, document: Document) -> Document:
    """Add line numbers to a JSON document by reading it as YAML (which it nearly is); only errors pay for this."""
    if len(text) > _MAX_LOCATED_JSON:
        return document
    try:
        return Document(document.data, parse_yaml(text.replace("\t", " ")).lines, document.file)
    except SpecError:
        return document


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
