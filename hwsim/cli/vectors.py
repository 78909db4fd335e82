"""`hwsim vectors`: operands and right answers for a test bench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def vectors(
    out: Annotated[Path, typer.Option(help="Folder to write into.")],
    mac: Annotated[str | None, typer.Option(help="A MAC: its text, or the name of real hardware.")] = None,
    cast: Annotated[str | None, typer.Option(help="A quantizer: a format, then rounding and overflow rules.")] = None,
    n: Annotated[int, typer.Option("--n", help="How many vectors.", min=1)] = 1000,
    inputs: Annotated[str | None, typer.Option(help="Format of a MAC's operands, where its name gives none.")] = None,
    terms: Annotated[int | None, typer.Option(help="Products of one vector (default: one step of the MAC).")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the random vectors after the edge cases.")] = 0,
) -> None:
    """Write golden vectors, edge cases first, as $readmemh hex and .npz, so that RTL can be checked against hwsim.

    The answers come from the reference back end, the definition itself.

    \b
    Examples:
      hwsim vectors --mac "bfloat16, order=sequential" --inputs float8_e4m3fn --n 1000 --out vectors/mac
      hwsim vectors --mac h200.float8_e4m3fn.float32.wgmma --out vectors/wgmma
      hwsim vectors --cast "fixed8.6 saturate" --out vectors/quantizer
    """
    from hwsim.cli.screen import output
    from hwsim.kernels.vectors import write_mac_vectors, write_quantizer_vectors

    if mac is not None and cast is None:
        files = write_mac_vectors(mac, n, out, inputs=inputs, terms=terms, seed=seed)
    elif cast is not None and mac is None:
        files = write_quantizer_vectors(cast, n, out, seed=seed)
    else:
        raise typer.BadParameter("give exactly one of --mac and --cast")
    for file in files:
        output().print(str(file), markup=False)
