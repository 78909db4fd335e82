"""Files to frozen, checked values: YAML or JSON in, pydantic models out, every mistake named with file, line and field.

A model of a file's content derives from `Spec`; the model of a whole file also names its schema::

    class Accelerator(Spec):
        SCHEMA = "accelerator/1"
        name: str
        clock_ghz: Annotated[float, Field(gt=0)]
        storage: Format = parse_format("bfloat16")    # written as text in the file

    chip = load_yaml("accelerators/my_chip.yaml", Accelerator)

Lists in a file become tuples in a Spec. Fixed choices are `Literal` texts. A union of models carries a `kind` field as
its discriminator. A rule between fields is a `model_validator(mode="after")` that raises ``field_problem(...)``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, PlainValidator, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from hwsim.arithmetic.mac import MacSpec, parse_mac
from hwsim.arithmetic.named import parse_format
from hwsim.arithmetic.number import NumberFormat
from hwsim.arithmetic.rounding import Rounding
from hwsim.arithmetic.storage import Cast, as_cast
from hwsim.document import Document, Place, locate_json, parse_json, parse_yaml, read_text
from hwsim.errors import SpecError
from hwsim.spec_errors import describe_problems, near

Model = TypeVar("Model", bound="Spec")


class Spec(BaseModel):
    """Base of everything read from a file: strict types, unknown keys refused, finite numbers, immutable."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True
    )

    SCHEMA: ClassVar[str | None] = None  # "experiment/1" on the model of a whole file
    OLDER: ClassVar[tuple[str, ...]] = ()  # schemas of older files that are read as well
    DESCRIBED_BY: ClassVar[type[Spec] | None] = None  # the model that says what plain data in this one's fields means

    def __init__(self, **values: Any) -> None:
        values = {key: _tuples(value) for key, value in values.items()}
        try:
            super().__init__(**values)
        except ValidationError as error:
            document = Document(values, {}, None)
            problems = describe_problems(error, type(self), document)
            raise SpecError(*(f"{type(self).__name__}: {problem}" for problem in problems)) from None

    # BaseModel marks its own __init__ in the same way: nested models are then validated directly, not through ours,
    # so that their problems keep their places in the file.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]


def _tuples(value: Any) -> Any:
    """Lists written in Python mean the tuples that a Spec holds."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def field_problem(field: str | Place, message: str) -> PydanticCustomError:
    """Build the error of a rule between fields, so that the message points at `field` (dots lead deeper)."""
    return PydanticCustomError("field_problem", "{message}", {"field": field, "message": message})


def field_problems(problems: Iterable[tuple[Place, str]]) -> ValidationError:
    """Build the error of several broken rules, each pointing at its own place below the model that raises it."""
    details: list[InitErrorDetails] = [
        {"type": field_problem(place, message), "loc": (), "input": None} for place, message in problems
    ]
    return ValidationError.from_exception_data("Spec", details)


def load_yaml(source: Path | str, model: type[Model], *, file: str | None = None) -> Model:
    """Read a YAML file, or YAML text (a str with a newline in it), as `model`; `file` renames it in messages.

    Raises:
        SpecError: every problem found, one line each: ``file:line: field: got X, expected Y``.
    """
    name, text = _text_of(source, file)
    return _validate(parse_yaml(text, name), model)


def load_json(
    source: Path | str,
    model: type[Model],
    *,
    file: str | None = None,
    prepare: Callable[[Document], Document] | None = None,
) -> Model:
    """Read a JSON file, or JSON text (a str with a newline or a brace in it), as `model`.

    `prepare` turns what a file holds in short into the fields of the model; it must not change its argument.

    Raises:
        SpecError: every problem found, one line each: ``file:line: field: got X, expected Y``.
    """
    name, text = _text_of(source, file)
    document = parse_json(text, name)
    whole = prepare or (lambda document: document)
    try:
        return _validate(whole(document), model)
    except SpecError:
        return _validate(whole(locate_json(text, document)), model)  # the same problems, now with line numbers


def dump_yaml(value: Spec) -> str:
    """Write a Spec as YAML text that `load_yaml` reads back to an equal value; defaults are written out, not nulls."""
    from ruamel.yaml import YAML

    yaml = YAML(typ="rt", pure=True)
    yaml.default_flow_style = False
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    out = io.StringIO()
    yaml.dump(_without_nulls(to_plain(value)), out)
    return out.getvalue()


def dump_json(value: Spec) -> str:
    """Write a Spec as strict, indented JSON text that `load_json` reads back to an equal value."""
    return json.dumps(to_plain(value), indent=2, allow_nan=False) + "\n"


def to_plain(value: Spec) -> dict[str, Any]:
    """Plain data of a Spec, the schema first."""
    schema = {"schema": value.SCHEMA} if value.SCHEMA else {}
    return {**schema, **value.model_dump(mode="json")}


def _without_nulls(value: Any) -> Any:
    """The same data without the keys that say nothing."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def from_plain(data: Any, model: type[Model], *, file: str | None = None) -> Model:
    """Check plain data (what a parser returned) as `model`."""
    return _validate(Document(data, {}, file), model)


def _text_of(source: Path | str, file: str | None) -> tuple[str | None, str]:
    if isinstance(source, str) and ("\n" in source or "{" in source):
        return file, source
    return file or str(source), read_text(source)


def _validate(document: Document, model: type[Model]) -> Model:
    data = document.data
    if data is None:
        raise SpecError.at(document.file, None, None, "is empty")
    if not isinstance(data, dict):
        raise SpecError.at(document.file, 1, None, f"got {type(data).__name__}, expected a mapping (key: value)")
    problems: list[str] = []
    if model.SCHEMA is not None:
        data = dict(data)
        problem = _schema_problem(data.pop("schema", None), model)
        if problem is not None and problem.fatal:
            raise SpecError.at(document.file, document.line(("schema",)), "schema", problem.message)
        if problem is not None:
            problems.append(SpecError.at(document.file, document.line(()), "schema", problem.message).problems[0])
        document = Document(data, document.lines, document.file)
    try:
        value = model.model_validate_json(json.dumps(data, allow_nan=False))
    except ValidationError as error:
        problems += describe_problems(error, model, document)
    except SpecError as error:
        problems += [SpecError.at(document.file, None, None, problem).problems[0] for problem in error.problems]
    except (RecursionError, ValueError):
        raise SpecError.at(document.file, None, None, "nested too deeply or not plain data") from None
    if problems:
        raise SpecError(*problems)
    return value


class _SchemaProblem:
    def __init__(self, message: str, fatal: bool) -> None:
        self.message = message
        self.fatal = fatal  # another kind of file: its fields are not worth checking


def _schema_problem(got: Any, model: type[Spec]) -> _SchemaProblem | None:
    expected = str(model.SCHEMA)
    if got == expected or got in model.OLDER:
        return None
    if got is None:
        return _SchemaProblem(f"missing, expected 'schema: {expected}'", fatal=False)
    kind, _, version = str(got).partition("/")
    expected_kind, _, expected_version = expected.partition("/")
    if kind == expected_kind and version.isdigit():
        age = "newer" if int(version) > int(expected_version) else "older"
        return _SchemaProblem(f"got {got!r}, which is {age} than the {expected!r} that this hwsim reads", fatal=True)
    return _SchemaProblem(f"got {got!r}, expected {expected!r}", fatal=True)


# ---- arithmetic in files: text (or a mapping where several settings belong together) to values and back


def _as_format(value: Any) -> NumberFormat:
    return parse_format(value)


def _as_rounding(value: Any) -> Rounding:
    if isinstance(value, Rounding):
        return value
    if not isinstance(value, str):
        raise SpecError(f"got {value!r}, expected a rounding such as 'nearest_even' or 'stochastic'")
    return Rounding.parse(value)


def _as_cast(value: Any) -> Cast:
    if isinstance(value, dict):
        return Cast(**_known(value, ("format", "rounding", "overflow", "nan"), required="format"))
    return as_cast(value)


def _as_mac(value: Any) -> MacSpec:
    if isinstance(value, dict):
        fields = _known(value, ("accumulator", "rounding", "overflow", "product", "order"))
        if isinstance(fields.get("product"), dict):
            fields["product"] = _as_cast(fields["product"])
        return MacSpec(**fields)
    return parse_mac(value)


def _known(value: dict[str, Any], keys: tuple[str, ...], required: str | None = None) -> dict[str, Any]:
    for key in value:
        if key not in keys:
            raise SpecError(f"unknown key {key!r}, expected one of {', '.join(keys)}{near(key, keys)}")
    if required is not None and required not in value:
        raise SpecError(f"key {required!r} is missing")
    return dict(value)


Format = Annotated[NumberFormat, PlainValidator(_as_format), PlainSerializer(str)]
RoundingField = Annotated[Rounding, PlainValidator(_as_rounding), PlainSerializer(str)]
CastField = Annotated[Cast, PlainValidator(_as_cast), PlainSerializer(str)]
MacField = Annotated[MacSpec, PlainValidator(_as_mac), PlainSerializer(str)]
