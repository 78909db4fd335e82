"""The analyses that an experiment can name, each a function of its results (and the files beside it) alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from hwsim.analysis.break_even import break_even_section
from hwsim.analysis.pareto import pareto_section
from hwsim.analysis.published_speed import counts_section, cpu_section, gpu_section
from hwsim.analysis.ties import ties_section
from hwsim.results import Results
from hwsim.section import Section

Analysis = Callable[[Results, Path], Section]

ANALYSES: dict[str, Analysis] = {
    "pareto": lambda results, folder: pareto_section(results),
    "ties": lambda results, folder: ties_section(results),
    "break_even": lambda results, folder: break_even_section(results),
    "meprop_counts": lambda results, folder: counts_section(),
    "meprop_cpu": lambda results, folder: cpu_section(folder),
    "meprop_gpu": lambda results, folder: gpu_section(folder),
}


def analyze(names: Sequence[str], results: Results, folder: Path) -> tuple[Section, ...]:
    """Return the sections that an experiment in `folder` asks for.

    Raises:
        SpecError: a file beside the experiment holds mistakes.
    """
    return tuple(ANALYSES[name](results, folder) for name in names)
