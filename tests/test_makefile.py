"""The two commands of the README, as far as they can be tried without installing anything."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def fake_python(folder: Path, *, old: bool = False, venv: bool = True) -> Path:
    """A python3 that answers the Makefile's questions as an old one, or as one without the venv module, would."""
    script = folder / "python3"
    script.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f"  *version_info*) exit {int(old)};;\n"
        f"  *ensurepip*) exit {int(not venv)};;\n"
        "  --version) echo Python 3.9.2;;\nesac\n"
    )
    script.chmod(0o755)
    return script


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("python", "expected"),
    [
        ({"venv": False}, "Python's venv module is missing. On Debian or Ubuntu: apt-get install python3-venv"),
        ({"old": True}, "hwsim needs Python 3.11 or newer: found Python 3.9.2. Set PYTHON=/path/to/python3."),
    ],
)
def test_a_missing_need_is_one_clear_line(python: dict[str, bool], expected: str, tmp_path: Path) -> None:
    command = ["make", "-f", str(ROOT / "Makefile"), "demo", f"PYTHON={fake_python(tmp_path, **python)}", "VENV=env"]
    (tmp_path / "pyproject.toml").write_text("")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert ours == [expected]


def test_every_file_that_a_target_names_is_there() -> None:
    for script in re.findall(r"tests/[\w/]+\.py", MAKEFILE):
        assert (ROOT / script).is_file(), script


def test_ci_is_an_executable_bash_script_that_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "make test" in script.read_text(encoding="utf-8")
