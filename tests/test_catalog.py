"""Every shipped file loads, and a name that nothing has is answered with the nearest one."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwsim import catalog
from hwsim.cli.files import check_file, read_any, shipped_files
from hwsim.errors import SpecError
from hwsim.experiment import Experiment
from hwsim.hardware.accelerator import unsourced_numbers
from hwsim.spec import dump_yaml, load_yaml, to_plain


@pytest.mark.parametrize("path", shipped_files(), ids=lambda path: path.name)
def test_every_shipped_file_loads(path: Path) -> None:
    check_file(path)


@pytest.mark.parametrize("path", [p for p in shipped_files() if p.suffix == ".yaml"], ids=lambda path: path.name)
def test_every_shipped_file_survives_being_written_again(path: Path) -> None:
    value = read_any(path)
    assert to_plain(load_yaml(dump_yaml(value), type(value))) == to_plain(value)


@pytest.mark.parametrize("name", catalog.accelerators())
def test_an_accelerator_is_named_as_its_file_and_every_number_has_a_source(name: str) -> None:
    machine = catalog.load_accelerator(name)
    assert machine.name == name
    assert list(unsourced_numbers(machine)) == []


@pytest.mark.parametrize("name", catalog.experiments())
def test_every_shipped_experiment_names_things_that_exist(name: str) -> None:
    experiment = catalog.load_experiment(name)
    assert experiment.points()
    for point in experiment.points():
        assert catalog.model_file(point.model, experiment.folder).is_file()
    for accelerator in experiment.accelerators:
        catalog.load_accelerator(accelerator, experiment.folder)


@pytest.mark.parametrize("name", catalog.models())
def test_every_shipped_network_says_what_it_is(name: str) -> None:
    assert catalog.describe_model(catalog.models()[name])


def test_shipped_things_are_there() -> None:
    assert {"systolic_16x16", "systolic_32x32"} <= set(catalog.accelerators())
    assert {"mlp_digits", "mlp_mnist"} <= set(catalog.models())
    assert "quickstart" in catalog.experiments()


@pytest.mark.parametrize(
    ("load", "name", "expected"),
    [
        (catalog.load_accelerator, "sistolic_32x32", "Did you mean 'systolic_32x32'"),
        (catalog.load_accelerator, "zzz", "shipped are "),
        (catalog.load_accelerator, "./nothing.yaml", "nothing.yaml: no such file"),
        (catalog.load_model, "mlp_minst", "Did you mean 'mlp_mnist'"),
        (catalog.load_model, "nothing.py", "nothing.py: no such file"),
        (catalog.load_experiment, "quikstart", "Did you mean 'quickstart'"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(load: object, name: str, expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        load(name)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def model():\n    return 3\n", r"net.py: model\(\) returned int, expected a torch.nn.Module"),
        ("x = 3\n", r"net.py: defines no function model\(\)"),
        ("import nothing_like_this\n", r"net.py:1: cannot be imported \(ModuleNotFoundError"),
        ("def model(:\n", r"net.py:1: cannot be imported \(SyntaxError"),
        ("def model(width): pass\n", r"net.py: model\(\): .*width"),
        ("\n\nraise KeyError('a')\n", r"net.py:3: cannot be imported \(KeyError"),
    ],
)
def test_a_users_network_that_does_not_work_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(text)
    with pytest.raises(SpecError, match=expected):
        catalog.load_model("net.py", tmp_path)


def test_a_users_network_takes_arguments(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\ndef model(width=3):\n    return nn.Linear(2, width)\n")
    assert catalog.load_model("./net.py", tmp_path, width=5).out_features == 5


def test_paths_in_an_experiment_start_at_its_folder(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "net.py").write_text("from torch import nn\ndef model():\n    return nn.Linear(64, 10)\n")
    text = "schema: experiment/1\nname: a\nmodel: net.py\ndata: digits\nconfigurations: {dense: {}}\n"
    (tmp_path / "study" / "experiment.yaml").write_text(text)
    experiment = catalog.load_experiment(tmp_path / "study" / "experiment.yaml")
    assert isinstance(experiment, Experiment)
    assert catalog.model_file(experiment.points()[0].model, experiment.folder) == tmp_path / "study" / "net.py"


def test_a_table_of_prices_lies_beside_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chips").mkdir()
    shipped = catalog.accelerators()["systolic_16x16"].read_text()
    (tmp_path / "chips" / "mine.yaml").write_text(shipped.replace("energy_45nm", "./prices.yaml"))
    with pytest.raises(SpecError, match=r"chips/prices\.yaml: no such file"):
        check_file(tmp_path / "chips" / "mine.yaml")
    (tmp_path / "chips" / "prices.yaml").write_text(catalog.energy_tables()["energy_45nm"].read_text())
    check_file(tmp_path / "chips" / "mine.yaml")
    assert catalog.load_accelerator("chips/mine.yaml").energy.table == "chips/prices.yaml"


def test_checking_an_experiment_looks_at_everything_it_names(tmp_path: Path) -> None:
    text = (
        "schema: experiment/1\nname: a\nmodel: net.py\ndata: digitz\nconfigurations: {dense: {}}\naccelerators: [tpu]\n"
    )
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(SpecError) as caught:
        check_file(tmp_path / "study.yaml")
    assert len(caught.value.problems) == 2
    (tmp_path / "study.yaml").write_text(text.replace("digitz", "digits").replace("tpu", "systolic_16x16"))
    with pytest.raises(SpecError, match=r"model: .*net\.py: no such file"):
        check_file(tmp_path / "study.yaml")
