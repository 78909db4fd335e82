"""Who may import whom: an arrow only points down, heavy libraries have one door, packages' `__init__` hold nothing."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "hwsim"

# layer -> what it may import of hwsim: a name stands for a module or a whole package, "a.b" for one module of it
READING = {"errors", "document", "spec", "spec_errors"}
NUMBERS = {"errors", "arithmetic"}
PLANS = {"training.plan", "training.plan_file", "training.presets", "training.recipe", "training.sparse"}
RECORDS = {"expected", "records", "results", "section", "summary"}
PROFILE = {"training.profile", "advice"}  # plain data, and what follows from it
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "document": {"errors"},
    "arithmetic": {"errors"},
    "spec_errors": {"errors", "document"},
    "spec": NUMBERS | READING,
    "workload": NUMBERS,
    "workload_file": NUMBERS | READING | {"workload"},
    "kernels": NUMBERS,
    "data": {"errors"},
    "hardware": NUMBERS | READING | {"workload"},
    "simulation": NUMBERS | READING | {"workload", "hardware"},
    "training": NUMBERS | READING | {"workload", "workload_file", "kernels", "data"},
    "measurement": NUMBERS | READING | {"workload", "section", "simulation.result", "kernels"},
    "experiment": READING | PLANS | {"arithmetic"},
    **dict.fromkeys(
        RECORDS,
        READING | RECORDS | {"experiment", "training.result", "simulation.result", "measurement.record", "hardware"},
    ),
    "catalog": READING | {"experiment", "hardware", "data"},
    "provenance": {"__version__"},
    "advice": NUMBERS | {"training.profile"},
    "report": READING | RECORDS | PROFILE,
    "accumulation": {"errors", "arithmetic", "hardware", "simulation.gemm_work", "training.plan"},
    "pipeline": NUMBERS
    | READING
    | RECORDS
    | {"__version__", "training", "simulation", "measurement", "catalog", "data", "experiment", "hardware", "workload"}
    | {"provenance", "workload_file", "accumulation", "analysis"},
    "assignment": NUMBERS | READING | {"training", "kernels", "data", "catalog", "experiment", "provenance", "results"},
    "analysis": READING | RECORDS | {"catalog", "measurement", "validation"},
    "validation": NUMBERS
    | READING
    | RECORDS
    | {"simulation", "hardware", "workload", "catalog", "provenance", "measurement"},
    "sweep": READING | RECORDS | {"pipeline", "catalog", "experiment"},
}

# library -> the only places that may import it
DOORS = {
    "simpy": ("simulation/",),
    "plotly": ("report/",),
    "numba": ("kernels/numba_cpu/", "simulation/recurrence.py"),
    "triton": ("kernels/triton_gpu/", "measurement/"),
    "ruamel": ("document.py", "spec.py"),
    "pooch": ("data/",),
    "optuna": ("sweep.py",),
    "dask": ("sweep.py",),
    "distributed": ("sweep.py",),
    "typer": ("cli/",),
    "rich": ("cli/",),
}
TORCH_FREE = (
    "arithmetic/", "hardware/", "simulation/", "report/", "errors.py", "document.py", "spec.py", "spec_errors.py",
    "workload.py", "experiment.py", "records.py", "results.py", "section.py", "summary.py", "training/plan.py",
    "assignment/criteria.py", "assignment/cost.py", "assignment/assignment.py", "assignment/plan_text.py",
    "training/plan_file.py", "training/presets.py", "training/profile.py", "advice.py",
    "training/recipe.py", "training/sparse.py", "training/result.py",
)  # fmt: skip
MAY_HOLD_CODE = {"__init__.py", "kernels/__init__.py"}


def imported_names(source: str) -> list[tuple[int, str]]:
    """Line and dotted name of every import that can run; imports for type checkers alone are left out."""
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.extend((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, "relative import"))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def upward_imports(place: str, source: str) -> list[str]:
    """Imports of `source`, a file at `place` below hwsim/, that point up or sideways."""
    layer = place.partition("/")[0].removesuffix(".py")
    if layer in ("cli", "__init__"):
        return []
    allowed = ALLOWED.get(layer)
    if allowed is None:
        return [f"{place}: {layer} is a new layer, say in tests/test_layers.py what it may import"]
    wrong = []
    for line, name in imported_names(source):
        if name == "relative import":
            wrong.append(f"{place}:{line}: relative import, expected a full name")
        if name == "hwsim" or not name.startswith("hwsim."):
            continue
        target = name.removeprefix("hwsim.")
        own = target == layer or target.startswith(f"{layer}.")
        if not own and not any(target == one or target.startswith(f"{one}.") for one in allowed):
            wrong.append(f"{place}:{line}: {layer} may not import {name}")
    return wrong


def forbidden_libraries(place: str, source: str) -> list[str]:
    """Imports of heavy libraries that do not come through their door."""
    wrong = []
    for line, name in imported_names(source):
        library = name.partition(".")[0]
        if library in DOORS and not place.startswith(DOORS[library]):
            wrong.append(f"{place}:{line}: {library} may only be imported in {', '.join(DOORS[library])}")
        if library == "torch" and place.startswith(TORCH_FREE):
            wrong.append(f"{place}:{line}: torch is not needed here")
    return wrong


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("place", FILES)
def test_arrows_point_down(place: str) -> None:
    source = (PACKAGE / place).read_text(encoding="utf-8")
    assert upward_imports(place, source) + forbidden_libraries(place, source) == []


@pytest.mark.parametrize("place", [place for place in FILES if place.endswith("__init__.py")])
def test_package_inits_hold_a_docstring_only(place: str) -> None:
    tree = ast.parse((PACKAGE / place).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert place in MAY_HOLD_CODE or len(tree.body) == 1


@pytest.mark.parametrize("path", sorted((ROOT / "models").glob("*.py")), ids=lambda path: path.name)
def test_models_are_plain_torch(path: Path) -> None:
    libraries = {name.partition(".")[0] for _, name in imported_names(path.read_text(encoding="utf-8"))}
    assert libraries - sys.stdlib_module_names <= {"torch", "numpy"}


@pytest.mark.parametrize(
    ("place", "source"),
    [
        ("arithmetic/number.py", "from hwsim.kernels import quantize"),
        ("simulation/engine.py", "def f():\n    import torch"),
        ("report/page.py", "from hwsim.pipeline import run"),
        ("experiment.py", "from hwsim.training.loop import train"),
        ("training/loop.py", "import simpy"),
        ("kernels/gemm.py", "from . import casts"),
        ("novelty.py", ""),
    ],
)
def test_a_wrong_import_is_found(place: str, source: str) -> None:
    assert upward_imports(place, source) + forbidden_libraries(place, source)


def test_imports_for_type_checkers_do_not_count() -> None:
    assert upward_imports("report/page.py", "if TYPE_CHECKING:\n    from hwsim.pipeline import run") == []


def test_names_that_say_nothing_are_not_used() -> None:
    banned = {"utils", "common", "helpers", "base", "core"}
    found = [
        p.relative_to(ROOT) for p in PACKAGE.rglob("*") if p.stem.lower() in banned or p.stem.endswith(("_old", "_v2"))
    ]
    assert found == []
