"""The validation file: which rows are compared with which machine, what is fitted, and what error is promised.

schema: validation/1
fits:
  - machine: nvidia_v100
    settings:                      # of the machine, the same for every table of rows
      dram.efficiency: {low: 0.6, high: 1.0, why: "..."}
    tables:
      - kind: gemm
        name: float16 GEMMs
        where: {device: V100, dtype: fp16}
        overhead_us: {low: 2, high: 15, why: "..."}      # of the way this table was measured
        gates: {mean: 0.10}
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from hwsim.spec import Spec, field_problem

Share = Annotated[float, Field(gt=0, le=1)]


class Plausible(Spec):
    """A number that is fitted, the range in which it is believable, and why."""

    low: float
    high: float
    why: Annotated[str, Field(min_length=4)]

    @model_validator(mode="after")
    def _in_order(self) -> Plausible:
        if not self.low < self.high:
            raise field_problem("high", f"got {self.high}, expected more than low ({self.low})")
        return self


class Gates(Spec):
    """Errors (shares of the measured time) that held-out rows must not exceed."""

    mean: Share | None = None
    median: Share | None = None


class Regime(Spec):
    """Rows whose largest extent lies above `above` and up to `up_to`, reported apart."""

    name: str
    above: Annotated[int, Field(ge=0)] = 0
    up_to: Annotated[int, Field(ge=1)]
    gates: Gates = Gates()


class Table(Spec):
    """Rows measured in one way. `where`: column to a text that its value contains."""

    name: Annotated[str, Field(min_length=1)]
    where: dict[str, str]
    format: str
    overhead_us: Plausible | None = None
    overhead_of: str | None = None  # the table whose overhead applies, for rows that are not fitted
    fitted: bool = True
    weight: Annotated[float, Field(gt=0)] = 1.0  # in the sum of errors that is minimized
    settings: dict[str, Plausible] = Field(
        default_factory=dict
    )  # fitted to this table alone: its method's, not the machine's
    gates: Gates = Gates()
    regimes: tuple[Regime, ...] = ()
    source: str

    @model_validator(mode="after")
    def _one_overhead(self) -> Table:
        if (self.overhead_us is None) == (self.overhead_of is None):
            raise field_problem("overhead_us", "expected either overhead_us or overhead_of")
        return self


class GemmRows(Table):
    """Rows of gemm.csv.gz."""

    kind: Literal["gemm"]
    result_format: str | None = None
    layout: Literal["column_major", "row_major"] = "column_major"
    group_by: tuple[Literal["m", "n", "k"], ...] = ("m", "n", "k")


class ConvolutionRows(Table):
    """Rows of conv.csv.gz, one of the three passes."""

    kind: Literal["convolution"]
    gemm: Literal["output", "grad_input", "grad_weight"]


class Fit(Spec):
    """One machine: what is fitted on half of the rows and reported on the other half, both ways round."""

    title: str
    machine: str
    text: str = ""
    settings: dict[str, Plausible]
    tables: Annotated[
        tuple[Annotated[GemmRows | ConvolutionRows, Field(discriminator="kind")], ...], Field(min_length=1)
    ]

    @model_validator(mode="after")
    def _overheads_exist(self) -> Fit:
        names = [table.name for table in self.tables]
        for number, table in enumerate(self.tables):
            if table.overhead_of is not None and table.overhead_of not in names:
                raise field_problem(
                    f"tables.{number}.overhead_of", f"got {table.overhead_of!r}, expected a table above"
                )
        return self


class Unseen(Spec):
    """A machine described from its data sheet alone; `overhead_of` names a table of a fit above."""

    machine: str
    tables: tuple[Annotated[GemmRows | ConvolutionRows, Field(discriminator="kind")], ...]


class Study(Spec):
    """The content of a validation file."""

    SCHEMA: ClassVar[str | None] = "validation/1"

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$")]
    question: str = ""
    splits: Annotated[int, Field(ge=1)] = 2  # random halvings; each is fitted both ways
    seed: Annotated[int, Field(ge=0)] = 0
    bootstrap: Annotated[int, Field(ge=100)] = 2000
    conformance: bool = True
    fits: tuple[Fit, ...] = ()
    unseen: tuple[Unseen, ...] = ()
    meprop: str | None = None  # machine of meProp's tables 7 and 8
    chip_energy: bool = True
