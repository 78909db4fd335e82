"""What the README and the guides show works as it stands there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hwsim.catalog import load_experiment
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.hardware.accelerator import Accelerator
from hwsim.spec import load_yaml

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def guide(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("number", range(len(blocks(README, "python"))))
def test_python_examples_run(number: int, tmp_path: Path) -> None:
    code = blocks(README, "python")[number]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_first_python_example_has_about_15_lines() -> None:
    assert 12 <= len(blocks(README, "python")[0].splitlines()) <= 16


def test_the_experiment_is_sound(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (tmp_path / "my_study.yaml").write_text(text)
    assert len(load_experiment(tmp_path / "my_study.yaml").points()) == 4


def test_the_mistake_reads_as_shown(tmp_path: Path) -> None:
    (text,) = blocks(README, "yaml")
    (shown,) = re.findall(r"^my_study\.yaml:.*$", README, re.MULTILINE)
    (tmp_path / "my_study.yaml").write_text(text.replace("batch: 32", "batch: 32 images"))
    with pytest.raises(SpecError) as caught:
        load_experiment(tmp_path / "my_study.yaml")
    assert str(caught.value).endswith(shown)


@pytest.mark.parametrize(
    "command", re.findall(r"^(hwsim (?:simulate|accumulator|list|show|check|doctor).*?)(?:  |$)", README, re.MULTILINE)
)
def test_shell_examples_run(command: str, tmp_path: Path) -> None:
    (tmp_path / "my_study.yaml").write_text(blocks(README, "yaml")[0])
    make_chip = "hwsim show systolic_32x32 > my_chip.yaml; "
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        make_chip + command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_guide_of_experiments_names_every_key() -> None:
    text = guide("experiment.md")
    from hwsim.experiment import Configuration, SparseSettings
    from hwsim.training.plan_file import UniformSpec
    from hwsim.training.recipe import Recipe

    for model in (Experiment, Configuration, SparseSettings, Recipe, UniformSpec):
        for name in model.model_fields:
            assert f"`{name}`" in text or f"{name}:" in text or f" {name} " in text, f"{model.__name__}.{name}"


def test_the_guide_of_experiments_shows_sound_files() -> None:
    example, *parts = blocks(guide("experiment.md"), "yaml")
    load_yaml(example, Experiment)
    (precisions,) = (part for part in parts if part.startswith("precision:"))
    head = "schema: experiment/1\nname: a\nmodel: mlp_digits\ndata: digits\nconfigurations:\n  a:\n"
    shown = ["    precision:" + part.replace("\n", "\n    ") + "\n" for part in precisions.split("precision:")[1:]]
    assert len(shown) == 3
    for text in shown:
        assert load_yaml(head + text, Experiment).points()[0].plan.rules


def test_the_guide_of_accelerators_shows_a_machine_of_under_40_lines(tmp_path: Path) -> None:
    text = blocks(guide("own-accelerator.md"), "yaml")[0]
    assert len(text.splitlines()) < 40
    load_yaml(text, Accelerator)


def test_the_guide_of_networks_shows_one_that_trains(tmp_path: Path) -> None:
    network, use = blocks(guide("own-network.md"), "python")[:2]
    (tmp_path / "my_net.py").write_text(network)
    done = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
