"""`hwsim show`: one thing in full, with its sources."""

from __future__ import annotations

from dataclasses import fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hwsim.arithmetic.number import NumberFormat


def show(
    name: Annotated[str, typer.Argument(help="A shipped name, a number format, a MAC, or a file.")],
) -> None:
    """Show an accelerator, model, experiment, plan, data set, number format or MAC, fully expanded.

    What is printed of a YAML file is YAML again, defaults written out, so it can be saved, changed and used.

    \b
    Examples:
      hwsim show systolic_32x32 > my_chip.yaml
      hwsim show float8_e4m3fn
      hwsim show h200.float8_e4m3fn.float32.wgmma
    """
    typer.echo(describe(name).rstrip("\n"))


def describe(name: str) -> str:
    """The text that `hwsim show NAME` prints. Raises SpecError for a name that nothing has."""
    from hwsim import catalog
    from hwsim.arithmetic.mac import named_mac, named_macs
    from hwsim.arithmetic.named import named_formats, parse_format
    from hwsim.cli.files import read_any
    from hwsim.data.dataset import names as data_names
    from hwsim.document import is_path
    from hwsim.errors import SpecError
    from hwsim.spec import dump_yaml
    from hwsim.training.presets import PRESETS, named_plan

    shipped = {**catalog.accelerators(), **catalog.studies(), **catalog.energy_tables()}
    if is_path(name) or name in shipped:
        path = shipped.get(name, Path(name))
        if path.suffix == ".py":
            return _describe_model(path)
        return dump_yaml(read_any(path))
    if name in catalog.models():
        return _describe_model(catalog.models()[name])
    if name in PRESETS:
        return _describe_plan(named_plan(name))
    if name in data_names():
        return _describe_data(name)
    if name in named_macs():
        return f"{name}\n  {named_mac(name)}"
    try:
        return _describe_format(parse_format(name))
    except SpecError:
        known = [*shipped, *catalog.models(), *PRESETS, *data_names(), *named_formats(), *named_macs()]
        raise SpecError(catalog.unknown_name("show", name, known, listing=False)) from None


def _describe_model(path: Path) -> str:
    import ast

    text = path.read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text)) or ""
    return f"{path.name}\n\n{doc}\n\n{text[text.find('import') :]}" if doc else text


def _describe_plan(plan: object) -> str:
    lines = [f"{plan}"]
    for rule in plan.rules:  # type: ignore[attr-defined]
        lines.append(f"  layers {rule.layers}")
        lines += [f"    {role}: {cast}" for role, cast in rule.casts.items()]
        lines += [f"    {gemm} sums in: {mac}" for gemm, mac in rule.macs.items()]
        lines += [f"    {role} scaled: {scaling}" for role, scaling in rule.scaling.items()]
    scale = plan.loss_scale  # type: ignore[attr-defined]
    lines.append(f"  loss scale {scale.factor:g}{', dynamic' if scale.dynamic else ''}")
    return "\n".join(lines)


def _describe_data(name: str) -> str:
    from hwsim.data.dataset import load

    data = load(name)
    shape = " x ".join(map(str, data.train.inputs.shape[1:]))
    return "\n".join(
        (
            str(data),
            f"  input: {shape} {data.train.inputs.dtype}",
            f"  classes: {', '.join(data.classes)}",
            f"  sha256: {data.sha256}",
        )
    )


def _describe_format(fmt: NumberFormat) -> str:
    lines = [f"{fmt} ({fmt.kind}, {fmt.bits_per_element:g} bits an element)"]
    for field in fields(fmt):
        value = getattr(fmt, field.name)
        lines.append(f"  {field.name}: {value.value if isinstance(value, Enum) else value}")
    for derived in ("emin", "emax", "largest", "lowest", "smallest_normal", "smallest_subnormal", "step"):
        value = getattr(fmt, derived, None)
        if value is not None:
            lines.append(f"  {derived}: {value!r}")
    return "\n".join(lines)
