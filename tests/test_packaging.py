"""What an install puts on a machine: `hwsim` alone at top level, complete, working away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | environment
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the checkout so that nothing is left behind in it."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("hwsim", "models", "accelerators", "pyproject.toml", "README.md", "LICENSE"):
        run("cp", "-r", ROOT / name, copy, cwd=copy)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel; the libraries it needs are borrowed from this one."""
    home = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, cwd=home)
    return home / "bin"


def test_the_top_level_is_hwsim_only(wheel: Path) -> None:
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"hwsim"}


def test_the_wheel_is_complete(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        p.relative_to(ROOT).as_posix()
        for p in (ROOT / "hwsim").rglob("*")
        if p.suffix in (".py", ".yaml", ".css", ".js")
    }
    expected |= {f"hwsim/models/{path.name}" for path in (ROOT / "models").glob("*.py")}
    expected |= {f"hwsim/accelerators/{path.name}" for path in (ROOT / "accelerators").glob("*.yaml")}
    expected.add("hwsim/py.typed")
    assert expected - held == set()


def test_the_installed_copy_is_the_one_that_runs(installed: Path, tmp_path: Path) -> None:
    place = run(installed / "python", "-c", "import hwsim; print(hwsim.__file__)", cwd=tmp_path).stdout
    assert Path(place.strip()).is_relative_to(installed.parent)


@pytest.mark.parametrize("kind", ["formats", "accelerators", "models", "data", "backends", "macs", "reports"])
def test_list_works_away_from_the_checkout(kind: str, installed: Path, tmp_path: Path) -> None:
    assert run(installed / "hwsim", "list", kind, cwd=tmp_path).stdout.strip()


def test_every_shipped_file_is_sound_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    assert "all good" in run(installed / "hwsim", "check", cwd=tmp_path).stdout


def test_a_run_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    text = """\
schema: experiment/1
name: tiny
model: mlp_digits
data: digits
training: {batch: 64, epochs: 1, train_examples: 256, evaluate_examples: 64, recorded_steps: 2}
configurations:
  topk: {sparse: {k: 8, rank_over: batch}}
accelerators: [systolic_16x16]
"""
    (tmp_path / "tiny.yaml").write_text(text)
    out = run(installed / "hwsim", "run", "tiny.yaml", cwd=tmp_path).stdout
    assert "systolic_16x16" in out
    assert (tmp_path / "runs" / "tiny" / "index.html").stat().st_size > 10_000


@pytest.mark.slow
def test_demo_works_away_from_the_checkout(installed: Path, tmp_path: Path) -> None:
    out = run(installed / "hwsim", "demo", cwd=tmp_path).stdout
    assert "fp8_topk" in out
    assert (tmp_path / "runs" / "quickstart" / "results.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs"]
