"""What the guides to the profiler and to the accumulator's width show works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.advice import (
    CHUNK,
    COSINE,
    LOST_UPDATES,
    NORM_RATIO,
    OVERFLOW,
    SATURATION,
    SNR_DB,
    SNR_WANTED_DB,
    SWAMPED,
    UNDERFLOW,
    UNDERFLOW_LEFT,
)
from hwsim.arithmetic.variance_retention import needed_bits, variance_retention
from hwsim.catalog import load_experiment
from hwsim.training.profiler import STEPS

DOCS = Path(__file__).resolve().parent.parent / "docs"
GUIDES = ("accumulator-width.md", "profiler.md")


def blocks(name, language):
    text = (DOCS / name).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("guide", GUIDES)
def test_python_examples_run(guide, tmp_path):
    code = "\n".join(blocks(guide, "python"))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_experiment_is_sound(tmp_path):
    (text,) = blocks("profiler.md", "yaml")
    (tmp_path / "experiment.yaml").write_text(text)
    assert load_experiment(tmp_path / "experiment.yaml").profile


def test_the_thresholds_are_those_of_the_rules():
    text = (DOCS / "profiler.md").read_text(encoding="utf-8")
    shares = {"0.1 %": SATURATION, "10 %": UNDERFLOW, "1 %": UNDERFLOW_LEFT, "25 %": SWAMPED, "0.01 %": OVERFLOW}
    for written, value in shares.items():
        assert f"{100 * value:g} %" == written and f" {written}" in text
    assert (LOST_UPDATES, COSINE, NORM_RATIO, SNR_DB, SNR_WANTED_DB, CHUNK) == (0.5, 0.9, (0.8, 1.25), 10, 20, 64)
    assert STEPS == 8 and "eight steps" in text


@pytest.mark.parametrize("command", blocks("accumulator-width.md", "")[0].splitlines())
def test_commands_run(command, tmp_path):
    script = "from hwsim.cli.main import main; main()"
    words = [sys.executable, "-c", script, *command.split()[1:]]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mantissa" in done.stdout or "needed_bits" in done.stdout


def test_the_table_holds_the_formulas_numbers():
    text = (DOCS / "accumulator-width.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == 8
    for bits, whole, chunked in rows:
        assert f"{100 * variance_retention(4096, int(bits), 5):.1f}" == whole
        assert f"{100 * variance_retention(4096, int(bits), 5, 64):.1f}" == chunked
    assert f"asks for {needed_bits(4096, 5)} bits here, and for {needed_bits(4096, 5, 64)} in chunks of 64" in text
