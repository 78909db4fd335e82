"""The question as a value: which network, data, arithmetic, sparsity and machines are put side by side.

An experiment file names a model, a data set, a training recipe, seeds, accelerators and a set of configurations. A
configuration says what differs: its precision plan, its sparse backprop, settings of the recipe or of the model. A
`grid` spreads one configuration over all combinations of some settings. `Experiment.points` is the flat list.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, PrivateAttr, Tag, ValidationError, model_validator

from hwsim.document import Place, describe_field, is_path
from hwsim.errors import SpecError
from hwsim.spec import Spec, field_problem, field_problems, from_plain, load_yaml, to_plain
from hwsim.spec_errors import findings_of, near
from hwsim.training.plan import PrecisionPlan
from hwsim.training.plan_file import PlanSpec
from hwsim.training.presets import PRESETS, named_plan
from hwsim.training.recipe import Recipe
from hwsim.training.sparse import SparseBackprop


def _each_once(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise SpecError("got the same seed twice, expected each once")
    return seeds


Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_each_once)]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]


def _precision_form(value: Any) -> str:
    return "named" if isinstance(value, str) else "described"


def _known_precision(name: str) -> str:
    if name not in PRESETS and not is_path(name):
        raise SpecError(f"got {name!r}, expected one of {', '.join(PRESETS)}, or ./plan.yaml{near(name, PRESETS)}")
    return name


NamedPrecision = Annotated[str, AfterValidator(_known_precision), Tag("named")]
Precision = Annotated[NamedPrecision | Annotated[PlanSpec, Tag("described")], Discriminator(_precision_form)]


def _model_form(value: Any) -> str:
    return "named" if isinstance(value, str) else "with_arguments"


class ModelSettings(Spec):
    """A network and the arguments of its `model(...)` function."""

    name: str
    arguments: dict[str, JsonValue] = Field(default_factory=dict)


Model = Annotated[
    Annotated[str, Tag("named")] | Annotated[ModelSettings, Tag("with_arguments")], Discriminator(_model_form)
]


class SparseSettings(Spec):
    """`SparseBackprop` as a file writes it."""

    k: Count | None = None
    fraction: Share | None = None
    rank_over: Literal["example", "batch"] = "example"
    unit: Literal["element", "channel"] = "element"
    score: Literal["magnitude", "random"] = "magnitude"
    rank: Literal["before_cast", "after_cast"] = "before_cast"
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.0
    layers: tuple[str, ...] = ("*",)
    output_layer: bool = False
    schedule: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]], ...] = ()
    per_layer: tuple[tuple[str, Annotated[float, Field(gt=0)]], ...] = ()
    gates: Literal["together", "apart"] = "together"

    @model_validator(mode="after")
    def _one_amount(self) -> SparseSettings:
        if self.k is not None and self.fraction is not None:
            raise field_problem("fraction", "got k and fraction together, expected only one of them")
        if self.k is None and self.fraction is None:
            raise field_problem("k", "missing, expected k (a count) or fraction (a share)")
        return self

    def backprop(self) -> SparseBackprop:
        """The value that training takes."""
        return SparseBackprop(**{name: getattr(self, name) for name in SparseSettings.model_fields})


class PointSettings(Spec):
    """What one configuration says once its grid is laid out."""

    precision: Precision = "float32"
    sparse: SparseSettings | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)
    model: Model | None = None


class Configuration(Spec):
    """One configuration of the file: what differs from the others, and the grid it is spread over."""

    DESCRIBED_BY: ClassVar[type[Spec] | None] = PointSettings

    precision: JsonValue = "float32"
    sparse: dict[str, JsonValue] | None = None
    training: dict[str, JsonValue] = Field(default_factory=dict)
    """Entries of the recipe that differ for this configuration."""
    model: JsonValue = None
    seeds: Seeds | None = None
    """Seeds of this configuration; those of the experiment unless given."""
    grid: dict[str, Annotated[tuple[JsonValue, ...], Field(min_length=1)]] = Field(default_factory=dict)
    """Dotted setting, such as "sparse.k" or "precision.uniform.accumulator", to the values it takes."""

    @model_validator(mode="after")
    def _every_point_is_sound(self) -> Configuration:
        for key in self.grid:
            root = key.partition(".")[0]
            if root not in PointSettings.model_fields:
                expected = ", ".join(PointSettings.model_fields)
                hint = near(root, PointSettings.model_fields)
                problem = f"unknown setting, expected it to start with one of {expected}{hint}"
                raise field_problem(("grid", key), problem)
        for chosen in self.choices():
            plain = self.apply(chosen)
            try:
                PointSettings.model_validate_json(json.dumps(plain))
            except ValidationError as error:
                if not chosen:
                    raise  # pydantic keeps the places of its findings
                raise _blame(error, plain, chosen) from None
        return self

    def choices(self) -> list[dict[str, JsonValue]]:
        """All combinations of the grid, the last key running fastest; one empty choice without a grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]

    def apply(self, chosen: Mapping[str, JsonValue]) -> dict[str, Any]:
        """Plain settings with the chosen grid values put in their places."""
        plain = json.loads(self.model_dump_json(exclude={"grid", "seeds"}))
        for key, value in chosen.items():
            *path, last = key.split(".")
            place = plain
            for part in path:
                if not isinstance(place.get(part), dict):
                    place[part] = {}
                place = place[part]
            place[last] = value
        return plain


def _blame(error: ValidationError, plain: dict[str, Any], chosen: Mapping[str, JsonValue]) -> ValidationError:
    """Point at the grid entries whose values made a point unsound, and at the configuration for the rest."""
    problems: list[tuple[Place, str]] = []
    for place, message in findings_of(error, PointSettings, plain):
        field = describe_field(place)
        key = next((key for key in chosen if field == key or field.startswith(f"{key}.")), None)
        problems.append((place, message) if key is None else (("grid", key), message))
    return field_problems(problems)


@dataclass(frozen=True)
class Point:
    """One thing to train: a configuration with one value for every setting."""

    name: str
    family: str  # the name in the file; the points of one grid share it
    plan: PrecisionPlan
    sparse: SparseBackprop | None
    recipe: Recipe
    model: str
    model_arguments: Mapping[str, JsonValue]
    settings: Mapping[str, JsonValue]
    seeds: tuple[int, ...]


_SHORT: dict[str, JsonValue] = {"epochs": 1, "train_examples": 1000, "evaluate_examples": 500, "recorded_steps": 2}


class QuickForm(Spec):
    """What `--quick` runs instead: the same code on less, in about a minute, to show that everything works."""

    configurations: tuple[str, ...] = ()
    """Names of configurations, or of single points of a grid such as "topk k=20"; all unless given."""
    seeds: Seeds = (0,)
    training: dict[str, JsonValue] = Field(default_factory=lambda: dict(_SHORT))
    """Entries of the recipe, over those of the experiment and of its configurations."""


class Experiment(Spec):
    """The content of an experiment file."""

    SCHEMA: ClassVar[str | None] = "experiment/1"

    name: FileName
    question: str = ""
    model: Model
    data: str
    training: Recipe = Recipe()
    seeds: Seeds = (0,)
    configurations: Annotated[dict[FileName, Configuration], Field(min_length=1)]
    accelerators: tuple[str, ...] = ()
    """Shipped names or paths; without any, nothing is simulated."""
    engine: Literal["fast", "events"] = "fast"
    baseline: str | None = None
    """The configuration that the others are compared with; the first one unless named."""
    analyses: tuple[Literal["pareto", "ties", "break_even", "meprop_counts", "meprop_cpu", "meprop_gpu"], ...] = ()
    """Sections that the page gets besides what every page has (`hwsim.analysis`)."""
    target_accuracy: Share | None = None
    """Dev accuracy that "to the target" means; one point under the baseline's mean dev accuracy unless stated."""
    profile: bool = False
    """Whether each trial records at some steps what the numbers do in every layer."""

    quick: QuickForm = QuickForm()
    """What `--quick` runs."""

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _fits_together(self) -> Experiment:
        names = [name for name, _, _ in self._spread()]
        if self.baseline is not None and self.baseline not in names:
            raise field_problem(
                "baseline", f"got {self.baseline!r}, expected one of {', '.join(names)}{near(self.baseline, names)}"
            )
        problems: list[tuple[Place, str]] = []
        known = {*names, *self.configurations}
        for place, name in enumerate(self.quick.configurations):
            if name not in known:
                message = f"got {name!r}, expected one of {', '.join(sorted(known))}{near(name, sorted(known))}"
                problems.append((("quick", "configurations", place), message))
        for _, family, settings in self._spread():
            recipe = {**to_plain(self.training), **settings["training"]}
            shortened = {**recipe, **self.quick.training}
            try:
                Recipe.model_validate_json(json.dumps(shortened))
            except ValidationError as error:
                found = findings_of(error, Recipe, shortened)
                problems += [
                    (("quick", "training", *place), message)
                    for place, message in found
                    if not place or place[0] in self.quick.training
                ]
            try:
                checked = Recipe.model_validate_json(json.dumps(recipe))
            except ValidationError as error:
                where = ("configurations", family, "training")
                problems += [((*where, *place), message) for place, message in findings_of(error, Recipe, recipe)]
            else:
                if checked.simplify is not None and settings["sparse"] is None:
                    message = "missing, expected it: simplify removes units by what top-k keeps"
                    problems.append((("configurations", family, "sparse"), message))
        if problems:
            raise field_problems(problems)
        return self

    @property
    def folder(self) -> Path:
        """Where relative paths in the file start: its own folder, or the current one."""
        return self._folder or Path()

    def in_folder(self, folder: Path) -> Experiment:
        """The same experiment, read from `folder`."""
        copy = self.model_copy()
        object.__setattr__(copy, "__pydantic_private__", {"_folder": folder})
        return copy

    def quick_form(self) -> Experiment:
        """The shortened experiment that `--quick` runs.

        Of a grid, the values of the named points are kept, in every combination.

        Raises:
            SpecError: the quick form leaves out the baseline, or its parts do not fit together.
        """
        wanted = set(self.quick.configurations) or set(self.configurations)
        chosen: dict[str, list[Mapping[str, JsonValue]]] = {}
        for name, family, values in self._choices():
            if name in wanted or family in wanted:
                chosen.setdefault(family, []).append(values)
        plain = to_plain(self)
        plain["configurations"] = {
            family: {
                **plain["configurations"][family],
                "seeds": None,
                "training": {**plain["configurations"][family]["training"], **self.quick.training},
                "grid": {
                    key: [value for value in all_values if any(choice[key] == value for choice in choices)]
                    for key, all_values in plain["configurations"][family]["grid"].items()
                },
            }
            for family, choices in chosen.items()
        }
        plain["seeds"] = list(self.quick.seeds)
        plain.pop("quick")
        plain["baseline"] = self.baseline or next(self._choices())[0]
        try:
            return from_plain(plain, Experiment).in_folder(self.folder)
        except SpecError as error:
            raise SpecError(*(f"quick: {problem}" for problem in error.problems)) from None

    def points(self) -> tuple[Point, ...]:
        """Every configuration with its grid laid out, in file order.

        Raises:
            SpecError: a plan file is missing or wrong, or a plan's parts do not fit together.
        """
        return tuple(self._point(*spread) for spread in self._spread())

    def network(self, configuration: str | None = None) -> tuple[str, Mapping[str, JsonValue], Recipe]:
        """The model, its arguments and the recipe of a configuration; the baseline's unless named.

        Its precision is not looked at, so that a plan file that it names need not be there.

        Raises:
            SpecError: there is no such configuration.
        """
        spread = {name: settings for name, _, settings in self._spread()}
        name = configuration or self.baseline or next(iter(spread))
        if name not in spread:
            raise SpecError(f"configuration: got {name!r}, expected one of {', '.join(spread)}{near(name, spread)}")
        model = from_plain(spread[name], PointSettings).model or self.model
        recipe = self._recipe(spread[name]["training"])
        return (model, {}, recipe) if isinstance(model, str) else (model.name, model.arguments, recipe)

    def _spread(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [(name, family, self.configurations[family].apply(chosen)) for name, family, chosen in self._choices()]

    def _choices(self) -> Iterator[tuple[str, str, dict[str, JsonValue]]]:
        """Name, family and grid values of every point."""
        for family, configuration in self.configurations.items():
            short = _short_names(configuration.grid)
            for chosen in configuration.choices():
                suffix = " ".join(f"{short[key]}={_word(value)}" for key, value in chosen.items())
                yield (f"{family} {suffix}" if suffix else family), family, chosen

    def _point(self, name: str, family: str, plain: dict[str, Any]) -> Point:
        where = f"configurations.{family}"
        settings = from_plain(plain, PointSettings)
        try:
            plan = _plan(settings.precision, self.folder)
        except SpecError as error:
            raise SpecError(*(f"{where}.precision: {problem}" for problem in error.problems)) from None
        model = settings.model or self.model
        return Point(
            name=name,
            family=family,
            plan=plan,
            sparse=settings.sparse.backprop() if settings.sparse else None,
            recipe=self._recipe(plain["training"]),
            model=model if isinstance(model, str) else model.name,
            model_arguments={} if isinstance(model, str) else model.arguments,
            settings=to_plain(settings),
            seeds=self.configurations[family].seeds or self.seeds,
        )

    def _recipe(self, changes: Mapping[str, Any]) -> Recipe:
        return from_plain({**to_plain(self.training), **changes}, Recipe) if changes else self.training


def _plan(precision: str | PlanSpec, folder: Path) -> PrecisionPlan:
    if isinstance(precision, PlanSpec):
        return precision.plan()
    return load_yaml(folder / precision, PlanSpec).plan() if is_path(precision) else named_plan(precision)


def _short_names(keys: Mapping[str, Any]) -> dict[str, str]:
    """The last part of each dotted key where it tells them apart, else the whole key."""
    last = [key.rpartition(".")[2] for key in keys]
    return {key: part if last.count(part) == 1 else key for key, part in zip(keys, last, strict=True)}


def _word(value: JsonValue) -> str:
    if isinstance(value, dict | list):
        return json.dumps(value, separators=(",", ":"), sort_keys=True)
    return str(value)
