"""Run a measurement study (schema measured/1): kernels measured on a real device against the machine that describes
it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from hwsim import provenance
from hwsim.catalog import load_accelerator
from hwsim.document import is_path
from hwsim.measurement.study import MeasuredStudy, study_sections
from hwsim.results import Provenance, Results
from hwsim.simulation.engine import simulate
from hwsim.spec import load_yaml, to_plain


def run_measured(path: Path, progress: Callable[[str], None] | None = None) -> Results:
    """Return the study's page as plain data, drawn from the recorded file, or from the lack of one.

    Raises:
        SpecError: the study or its measurements file holds mistakes, or the accelerator cannot be found.
    """
    started = time.perf_counter()
    study = load_yaml(path, MeasuredStudy)
    machine = load_accelerator(path.parent / study.accelerator if is_path(study.accelerator) else study.accelerator)
    if progress is not None:
        progress(f"{study.measurements} against {machine.name}")
    sections = study_sections(study, path.parent, lambda workload: simulate(workload, machine))
    file = path.parent / study.measurements
    return Results(
        experiment={"name": study.name, "question": study.question, **to_plain(study)},
        sections=sections,
        answer="Not measured yet." if not file.exists() else sections[1].text.split("\n")[0],
        provenance=Provenance(
            hwsim=version("hwsim"),
            code=provenance.code_state(),
            created=provenance.now(),
            wall_s=time.perf_counter() - started,
            versions=provenance.versions(),
            data={file.name: hashlib.sha256(file.read_bytes()).hexdigest()} if file.exists() else {},
            device=provenance.device(),
        ),
    )
