"""`hwsim accumulator`: how many mantissa bits long sums need, and what an accumulator keeps of their variance."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer


def accumulator(
    length: Annotated[list[int], typer.Option(help="Products in a sum (k of the GEMM); may be given again.")],
    operands: Annotated[str, typer.Option(help="Number format of the operands, a float.")] = "float8_e5m2",
    other: Annotated[str | None, typer.Option(help="Format of the second operand, if it is another.")] = None,
    accumulator: Annotated[str | None, typer.Option(help="An accumulator to judge, such as e6m9.")] = None,
    chunk: Annotated[int | None, typer.Option(help="Products in a chunk, if sums are chunked.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list, one entry a length.")] = False,
) -> None:
    """Say how wide an accumulator must be, by the variance that a sum of so many products keeps in it.

    The analysis is that of Sakr et al. 2019, for rounding to nearest; docs/accumulator-width.md says what it assumes
    and how it compares with measured variances. An accumulator that truncates needs more.

    \b
    Examples:
      hwsim accumulator --length 4096 --operands float8_e5m2 --accumulator e6m9
      hwsim accumulator --length 1024 --length 65536 --operands float8_e5m2 --accumulator e6m9 --chunk 64
    """
    from hwsim.arithmetic.variance_retention import accumulator_width

    found = [accumulator_width(n, operands, other, accumulator, chunk) for n in length]
    if as_json:
        typer.echo(json.dumps([{**asdict(width), "suits": width.suits} for width in found], indent=2, default=str))
        return
    from hwsim.cli.screen import print_table

    plain = [accumulator_width(n, operands, other, accumulator) for n in length] if chunk else found
    headings = ["products", "mantissa bits needed"]
    headings += [f"in chunks of {chunk}"] if chunk else []
    headings += [f"kept by {accumulator}", "suits"] if accumulator else []
    rows = []
    for whole, width in zip(plain, found, strict=True):
        row = [f"{width.length:,}", str(whole.needed_bits)]
        row += [str(width.needed_bits)] if chunk else []
        if width.retention is not None:
            row += [f"{width.retention:.2%}", "yes" if width.suits else "no"]
        rows.append(row)
    print_table(f"Products of {found[0].product_bits} mantissa bits", headings, rows, right=headings[:-1])
