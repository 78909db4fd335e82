"""Compiled code is reused by the next process, but never after a change in a file that it contains."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hwsim

SHOW = """
import numpy as np, hwsim
from hwsim.kernels.numba_cpu import quantize, rounding
made = hwsim.Cast("fixed8.6")
print(hwsim.quantize(np.float32([1.3]), "fixed8.6")[0], hwsim.__file__)
loops = quantize.plan(made, True)[1][0]
print("from disk" if sum(loops.stats.cache_hits.values()) else "compiled")
"""


def test_cached_code_is_reused_until_a_source_changes(tmp_path: Path) -> None:
    package = tmp_path / "hwsim"
    shutil.copytree(Path(hwsim.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def run() -> list[str]:
        command = [sys.executable, "-P", "-c", SHOW]
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
        return shown.stdout.split("\n")

    first, second = run(), run()
    assert first[0] == f"1.296875 {package / '__init__.py'}" == second[0]
    assert (first[1], second[1]) == ("compiled", "from disk")
    source = package / "kernels" / "numba_cpu" / "rounding.py"
    source.write_text(source.read_text().replace("total = y + p.magic", "total = y + typed_as(y, 1) + p.magic"))
    changed = run()
    assert changed[0].startswith("1.3125 ") and changed[1] == "compiled"
