"""Run a validation file: every comparison it asks for, as sections of one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hwsim import provenance
from hwsim.catalog import load_accelerator
from hwsim.document import is_path
from hwsim.hardware.accelerator import Accelerator
from hwsim.results import Provenance, Results
from hwsim.section import Section
from hwsim.spec import load_yaml, to_plain
from hwsim.validation.chip_energy import chip_energy_section
from hwsim.validation.compare import Fitted, overhead_key, run_fit, simulated_us
from hwsim.validation.conformance import conformance_section
from hwsim.validation.meprop import meprop_section
from hwsim.validation.rows import data_folder, data_hashes, read_rows
from hwsim.validation.sections import fit_section, unseen_section
from hwsim.validation.study import Study

CONFORMANCE_MACHINE = "systolic_32x32"

Progress = Callable[[str], None]


def run_study(path: Path, progress: Progress | None = None, data_dir: Path | None = None) -> Results:
    """Run the validation file and return its page as plain data.

    Raises:
        SpecError: the file holds mistakes, or the measured data are not at hand (HWSIM_DATA).
    """
    started = time.perf_counter()
    tell = progress or (lambda _: None)
    study = load_yaml(path, Study)
    folder = data_folder(data_dir)
    sections: list[Section] = []
    if study.conformance:
        tell("conformance with SCALE-Sim")
        sections.append(conformance_section(load_accelerator(CONFORMANCE_MACHINE), study.seed))
    fits = []
    for fit in study.fits:
        fits.append(run_fit(fit, _machine(fit.machine, path), folder, study, tell))
        sections.append(fit_section(fits[-1], study))
    if study.meprop is not None:
        tell("meProp's GPU tables")
        sections.append(meprop_section(_machine(study.meprop, path)))
    if study.chip_energy:
        sections.append(chip_energy_section())
    if study.unseen:
        tell("machines that nothing was fitted to")
        sections.append(_unseen(study, path, folder, fits))
    return Results(
        experiment={"name": study.name, "question": study.question, **to_plain(study)},
        sections=tuple(sections),
        answer=_answer(sections),
        provenance=Provenance(
            hwsim=_version(),
            code=provenance.code_state(),
            created=provenance.now(),
            wall_s=time.perf_counter() - started,
            versions=provenance.versions(),
            data=data_hashes(folder),
            device=provenance.device(),
        ),
    )


def _version() -> str:
    from importlib.metadata import version

    return version("hwsim")


def _machine(name: str, study: Path) -> Accelerator:
    return load_accelerator(study.parent / name if is_path(name) else name)


def _unseen(study: Study, path: Path, folder: Path, fits: list[Fitted]) -> Section:
    """Errors of machines that were described from data sheets alone."""
    overheads = {key: float(np.median(values)) for fitted in fits for key, values in fitted.found.items()}
    tables = {table.name: table for fitted in fits for table in fitted.fit.tables}
    rows = []
    for unseen in study.unseen:
        machine = _machine(unseen.machine, path)
        for table in unseen.tables:
            measured = read_rows(table, folder)
            overhead = overheads[overhead_key(tables[table.overhead_of or ""])]
            errors = simulated_us(measured, machine, overhead) / measured.time_us - 1.0
            absolute = np.abs(errors)
            rows.append(
                (
                    machine.name,
                    table.name,
                    len(measured),
                    float(absolute.mean()),
                    float(np.median(absolute)),
                    float(np.median(errors)),
                )
            )
    return unseen_section(rows, study.unseen[0].tables[0].source)


def _answer(sections: list[Section]) -> str:
    """One line: which parts passed."""
    good = [section.title for section in sections if section.verdict in ("passed", "confirmed")]
    bad = [section.title for section in sections if section.verdict in ("failed", "not confirmed")]
    text = f"{len(good)} of {len(good) + len(bad)} comparisons hold what they promise."
    return f"{text} Not: {'; '.join(bad)}." if bad else text
