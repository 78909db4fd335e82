"""Where a result comes from: versions, the code's own state, the processor. Never a host name or an absolute path."""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

import hwsim

_PACKAGE = Path(__file__).resolve().parent
_LIBRARIES = ("torch", "numpy", "numba", "simpy", "scikit-learn", "triton")
_TRAINING_CODE = ("arithmetic", "kernels", "data", "training", "workload.py")
_SIMULATION_CODE = ("arithmetic", "hardware", "simulation", "workload.py")


def versions() -> dict[str, str]:
    """Python and the installed libraries that can move a number."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def device() -> str:
    """Processor model and threads, without the machine's name."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    return f"{model}, {usable_cores()} cores"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def code_state() -> str:
    """The commit of the checkout that hwsim runs from, marked if files were changed; without git a hash of the code."""
    if (_PACKAGE.parent / ".git").exists():
        commit = _git("rev-parse", "HEAD")
        if commit:
            changed = " with changed files" if _git("status", "--porcelain", "--untracked-files=no") else ""
            return f"commit {commit[:12]}{changed}"
    return f"hwsim {hwsim.__version__}, code {_code_hash(('.',))[:12]}"


def training_code() -> str:
    """Hash of the code that decides what training computes; comments, docstrings and layout do not count."""
    return _code_hash(_TRAINING_CODE)


def simulation_code() -> str:
    """Hash of the code that decides what the simulator finds; comments, docstrings and layout do not count."""
    return _code_hash(_SIMULATION_CODE)


def hash_source(path: Path) -> str:
    """Hash of what a Python file does: its syntax tree without docstrings and positions."""
    return hashlib.sha256(_meaning(path)).hexdigest()


@cache
def _code_hash(parts: Iterable[str]) -> str:
    digest = hashlib.sha256(hwsim.__version__.encode())
    for part in parts:
        place = _PACKAGE / part
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(str(path.relative_to(_PACKAGE)).encode())
            digest.update(_meaning(path))
    return digest.hexdigest()


def _meaning(path: Path) -> bytes:
    text = path.read_bytes()
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return text
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_bare_text(part)]  # type: ignore[attr-defined]
    return ast.dump(tree).encode()


def _is_bare_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE.parent), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
