"""Energy of a published chip by component: one processing element of EIE (Han et al., ISCA 2016), 45 nm, 800 MHz.

EIE multiplies a sparse, compressed matrix with a sparse vector: one 16-bit multiply-accumulate a cycle, weights of 4
bits with 4-bit indices from a 128 KiB memory, column pointers from two banks of 16 KiB. The paper publishes the power
of one placed and routed element by module. Here each module is counts a cycle times prices of `energy_45nm`, as any
simulated machine's energy is; nothing is fitted.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwsim.arithmetic.mac import MacSpec
from hwsim.arithmetic.named import parse_format
from hwsim.hardware.energy import EnergyTable, Range, itemize, load_energy_table
from hwsim.hardware.price import total
from hwsim.section import Axis, Column, Figure, Section, Series, Table

CLOCK_GHZ = 0.8
SOURCE = (
    "published: Han et al., EIE, ISCA 2016 (arXiv 1602.01528), table II, as extracted in cucapra/fodlam "
    "raw/eie-raw.csv; "
    "memory sizes and widths of the design: the paper's section on implementation, remembered, not verified here"
)
PUBLISHED_MW = {
    "sparse matrix read": 4.955,
    "pointer read": 1.807,
    "arithmetic": 1.162,
    "activation read and write": 1.122,
    "activation queue": 0.112,
}

# A column of a 4096-row layer at 9 % density leaves this many entries to each of 64 elements.
ENTRIES_OF_A_COLUMN = 4096 * 0.09 / 64


@dataclass(frozen=True)
class Module:
    """One module: published and simulated energy a cycle in pJ."""

    name: str
    published_pj: float
    simulated_pj: Range


def modules(table: EnergyTable | None = None) -> list[Module]:
    """Every module of the element, in the order of the published table."""
    prices = table or load_energy_table("energy_45nm")
    word = parse_format("int16")
    counts = {
        "sparse matrix read": 64 / 8 / 8,  # bytes a cycle: a 64-bit word holds eight entries
        "pointer read": 2 * 2 / ENTRIES_OF_A_COLUMN,  # bytes: two 16-bit pointers a column
        "arithmetic": 1.0,
        "activation read and write": 1.0,
        "activation queue": (16 + 12) / 8 / ENTRIES_OF_A_COLUMN,  # bytes: value and index, once a column
    }
    accumulator_file_kib = 64 * 2 / 1024  # 64 destination activations of 16 bits
    per_count = {
        "sparse matrix read": prices.sram_pj_per_byte(128, 64),
        "pointer read": prices.sram_pj_per_byte(16, 16),
        "arithmetic": prices.mac_pj(MacSpec("int16", overflow="saturate"), word, word),
        "activation read and write": 2.0
        * (
            prices.sram_pj_per_byte(accumulator_file_kib, 16)
            + prices.sram_pj_per_byte(accumulator_file_kib, 16, write=True)
        ),
        "activation queue": prices.register_pj_per_byte(),
    }
    simulated = itemize(counts, per_count)
    return [Module(name, mw / CLOCK_GHZ, simulated[name]) for name, mw in PUBLISHED_MW.items()]


def chip_energy_section() -> Section:
    """EIE's element by module as a part of the page."""
    found = modules()
    whole = Module("all modules", sum(m.published_pj for m in found), total(m.simulated_pj for m in found))
    off = whole.simulated_pj.nominal / whole.published_pj - 1.0
    names = tuple(module.name for module in found)
    inside = whole.simulated_pj.low <= whole.published_pj <= whole.simulated_pj.high
    return Section(
        title="Energy of a published chip by component: EIE, 45 nm",
        verdict="confirmed" if inside and abs(off) <= 0.3 else "not confirmed",
        text=(
            "One processing element, one multiply-accumulate a cycle at 800 MHz: published power divided by the clock "
            "beside counts times the prices of energy_45nm. Nothing is fitted. The published modules include their "
            "share of the clock network (20 % of the element), which our prices hold only for registers. The verdict "
            "asks that the published total lies between low and high and within 30 % of nominal. "
            f"Nominal total: {off:+.0%} of the published one."
        ),
        figures=(
            Figure(
                title="Energy a cycle by module",
                x=Axis(label="module"),
                y=Axis(label="energy a cycle", unit="pJ"),
                series=(
                    Series(name="published", x=names, y=tuple(m.published_pj for m in found), style="bars"),
                    Series(
                        name="simulated, low to high",
                        x=names,
                        y=tuple(m.simulated_pj.nominal for m in found),
                        low=tuple(m.simulated_pj.low for m in found),
                        high=tuple(m.simulated_pj.high for m in found),
                        style="bars",
                    ),
                ),
                source=SOURCE,
            ),
        ),
        tables=(
            Table(
                title="Energy a cycle",
                columns=(
                    Column(name="module"),
                    *(
                        Column(name=name, unit="pJ", kind="number", digits=2)
                        for name in ("published", "low", "nominal", "high")
                    ),
                    Column(name="nominal / published", kind="ratio", digits=2),
                ),
                rows=tuple(
                    (
                        m.name,
                        m.published_pj,
                        m.simulated_pj.low,
                        m.simulated_pj.nominal,
                        m.simulated_pj.high,
                        m.simulated_pj.nominal / m.published_pj,
                    )
                    for m in (*found, whole)
                ),
                source=SOURCE,
            ),
        ),
    )
