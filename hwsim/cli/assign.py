"""`hwsim assign`: fixed-point widths for each tensor of a network, and a plan to train with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hwsim.assignment.assignment import Assignment, GridRecord
    from hwsim.assignment.procedure import Progress

STAGES = {"train": "float run", "gains": "noise gains", "sweep": "least bits"}


def assign(
    experiment: Annotated[str, typer.Argument(help="An experiment file, or the name of a shipped one.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the plan (default: runs/NAME-assign).")] = None,
    configuration: Annotated[
        str | None, typer.Option(help="Whose network and training are taken (default: the baseline).")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of the float run (default: the experiment's first).")] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of dev accuracy that weights and activations may cost.")
    ] = 0.005,
    one_bit_less: Annotated[
        bool, typer.Option("--one-bit-less", help="Also write plans with one bit less in each class of tensors.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from an interrupted float run.")] = False,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder of the data sets (default: HWSIM_DATA, then the cache).")
    ] = None,
) -> None:
    """Find the width and range of every tensor of a network in fixed-point training, and write a plan file.

    The network is trained in float32 once; noise gains, deviations of gradients and Jacobians then give the widths of
    weights, activations, both gradients and weight accumulators by the five criteria of Sakr & Shanbhag (ICLR 2019).

    \b
    Examples:
      hwsim assign my_study.yaml
      hwsim assign my_study.yaml --out plans --one-bit-less
      hwsim assign my_study.yaml --configuration float32 --tolerance 0.01 --resume
    """
    from hwsim.assignment.procedure import assign as find
    from hwsim.cli.screen import heeding_interrupts, messages, output

    try:
        with _progress() as show, heeding_interrupts() as heed:

            def progress(stage: str, share: float, note: str) -> None:
                heed()
                show(stage, share, note)

            found = find(experiment, out, configuration, seed, tolerance, one_bit_less, resume, progress, data_dir)
    except KeyboardInterrupt:
        messages().print("Interrupted. Finish with the same command and --resume.", markup=False)
        raise typer.Exit(130) from None
    _print(found)
    folder = out or Path("runs") / f"{found.name.removesuffix('_fixed_point')}-assign"
    output().print(f"\nPlan: {folder / 'plan.yaml'}", markup=False)


def _print(found: Assignment) -> None:
    from hwsim.cli.screen import output, print_table

    headings = ["layer", "B_A", "B_W", "B_GW", "B_GA", "B_acc"]
    rows = [
        [layer.layer]
        + [
            _cell(grid)
            for grid in (
                layer.activation, layer.weight, layer.weight_gradient, layer.activation_gradient, layer.accumulator
            )
        ]
        for layer in found.layers
    ]  # fmt: skip
    title = f"Bits and dynamic ranges (B_min = {found.least_bits}, float test accuracy {found.float_test_accuracy:.2%})"
    print_table(title, headings, rows)
    fixed, floating = found.cost, found.float_cost
    costs = [
        ("representational, C_R (bits)", floating.representational, fixed.representational),
        ("computational, C_C (full adders an example)", floating.computational, fixed.computational),
        ("communication, C_M (bits)", floating.communication, fixed.communication),
    ]
    output().print()
    numbers = ["float32", "fixed point", "ratio"]
    print_table(
        "Cost of training", ["cost", *numbers], [[n, f"{a:,}", f"{b:,}", f"{a / b:.2f}"] for n, a, b in costs], numbers
    )


def _cell(grid: GridRecord | None) -> str:
    """Bits and range: "8 in [-1, 1)", "6 in [0, 2)"."""
    if grid is None:
        return "none needed"
    reach = f"2^{grid.range}" if not 0 <= grid.range <= 4 else str(2**grid.range)
    return f"{grid.bits} in [{f'-{reach}' if grid.signed else '0'}, {reach})"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar a stage on a terminal, one line a finished stage elsewhere."""
    from hwsim.cli.screen import messages

    console = messages()
    if not console.is_terminal:

        def tell(stage: str, share: float, note: str) -> None:
            if share >= 1.0:
                console.print(f"{STAGES[stage]}: {note}", markup=False)

        yield tell
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {stage: bars.add_task(name, total=1.0, visible=False, note="") for stage, name in STAGES.items()}

        def show(stage: str, share: float, note: str) -> None:
            bars.update(tasks[stage], completed=share, visible=True, note=note)

        yield show
