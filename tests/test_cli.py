"""The command line: exit codes, one-line errors, what is imported for what, JSON output."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hwsim
from hwsim.cli.main import app
from hwsim.errors import HwsimError

HEAD = "schema: experiment/1\nname: tiny\nmodel: mlp_digits\ndata: digits\n"


def hwsim_command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the real command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", "from hwsim.cli.main import main; main()", *words],
        cwd=cwd, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip


def invoke(*words: str) -> str:
    """Run a command in this process and return what it printed; it must succeed."""
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def modules_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after running `code`."""
    text = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint('\\n', *sorted(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"torch", "numba", "numpy", "pydantic", "sklearn", "simpy", "plotly", "ruamel", "scipy"}


def test_import_hwsim_loads_nothing_heavy() -> None:
    assert not modules_after("import hwsim") & (HEAVY | {"typer", "rich"})


def test_help_loads_nothing_heavy() -> None:
    code = "sys.argv = ['hwsim', '--help']; import hwsim.cli.main as m; m.main()"
    assert not modules_after(code) & (HEAVY - {"pydantic"})


def test_simulate_loads_neither_torch_nor_numba() -> None:
    words = "['hwsim', 'simulate', '--gemm', '8,8,8', '--accelerator', 'systolic_16x16']"
    code = f"sys.argv = {words}; import hwsim.cli.main as m; m.main()"
    assert not modules_after(code) & {"torch", "numba", "sklearn", "plotly"}


def test_drawing_a_page_needs_no_torch() -> None:
    assert not modules_after("import hwsim.report.page, hwsim.results") & {"torch", "numba", "simpy"}


@pytest.mark.parametrize(("code", "limit_s"), [("import hwsim", 0.2), ("import hwsim.cli.main", 0.4)])
def test_start_up_is_quick(code: str, limit_s: float) -> None:
    """Best of several starts beyond a bare interpreter's, five times the limit: a busy machine must not fail it."""

    def seconds(text: str) -> float:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", text], check=True)
        return time.perf_counter() - begin

    assert min(seconds(code) for _ in range(4)) - min(seconds("pass") for _ in range(4)) < 5 * limit_s


def test_every_public_name_is_there() -> None:
    for name in hwsim.__all__:
        assert getattr(hwsim, name) is not None
    assert set(hwsim.__all__) <= set(dir(hwsim))
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        hwsim.quantise  # noqa: B018


def test_public_names_and_modules_do_not_collide() -> None:
    modules = {path.stem for path in Path(hwsim.__file__).parent.iterdir()}
    assert not modules & (set(hwsim.__all__) - {"__version__"})


def test_version() -> None:
    assert invoke("--version").strip() == f"hwsim {hwsim.__version__}"


@pytest.mark.parametrize(
    "words",
    [
        ["demo"], ["run"], ["simulate"], ["report"], ["list"], ["show"], ["check"], ["data", "list"], ["data", "fetch"],
        ["doctor"], ["measure"], ["vectors"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_help_with_an_example(words: list[str]) -> None:
    text = invoke(*words, "--help")
    assert "Example" in text
    assert f"hwsim {' '.join(words)}" in text


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["list", "fromats"], 2, "is not one of"),
        (["run"], 2, "Missing argument"),
        (["simulate", "--accelerator", "systolic_16x16"], 2, "exactly one of --gemm"),
        (["simulate", "--accelerator", "systolic_16x16", "--gemm", "1,2"], 2, "expected M,N,K"),
        (["simulate", "--accelerator", "systolic_16x16", "--gemm", "1,2,²"], 2, "expected M,N,K"),
        (["simulate", "--accelerator", "systolic_16x16", "--gemm", f"1,2,{10**30}"], 1, "2^42 elements at most"),
        (["run", "nothing.yaml"], 1, "experiment: nothing.yaml: no such file"),
        (["run", "quikstart"], 1, "Did you mean 'quickstart'"),
        (["show", "bfloat61"], 1, "Did you mean 'bfloat16'"),
        (["report", "nowhere"], 1, "nowhere: no such file"),
        (["check", "nothing.yaml"], 1, "nothing.yaml: no such file"),
        (["data", "fetch", "minst"], 1, "expected one of"),
        (["simulate", "--accelerator", "systolic_61x16", "--gemm", "1,2,3"], 1, "Did you mean 'systolic_16x16'"),
        (["simulate", "--accelerator", "systolic_16x16", "--gemm", "1,2,3", "--format", "bfloat61"], 1, "bfloat16"),
        (
            ["simulate", "--accelerator", "systolic_16x16", "--gemm", "1,2,3", "--format", "float64"],
            3,
            "at least 64 bits",
        ),
        (["simulate", "--accelerator", "systolic_16x16", "--gemms", "nothing.csv"], 1, "nothing.csv: no such file"),
        (["simulate", "--accelerator", "systolic_16x16", "--workload", "nothing.json"], 1, "nothing.json"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_ends_with_its_code_and_no_traceback(
    words: list[str], code: int, expected: str, tmp_path: Path
) -> None:
    done = hwsim_command(*words, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert expected in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            HEAD + "configurations: {a: {sparse: {k: 3, fraction: 0.1}}}\n",
            "5: configurations.a.sparse.fraction: got k and",
        ),
        (HEAD + "configurations: {a: {}}\nseed: [1]\n", "6: seed: unknown key. Did you mean 'seeds'?"),
        (HEAD + "training: {batch: 32 images}\n", "5: training.batch: got '32 images', expected a whole number >= 1"),
        (HEAD + "configurations: {a: {sparse: {k: 3}\n", "not valid YAML"),
        (HEAD + "configurations: {a: {precision: fp8_hibrid}}\n", "Did you mean 'fp8_hybrid'"),
        (HEAD + "configurations: {a: {}}\naccelerators: [tpu_v9000]\n", "accelerator: got 'tpu_v9000'"),
        (HEAD.replace("digits", "digitz") + "configurations: {a: {}}\n", "Did you mean"),
        (HEAD + "configurations: {a: {}}\nbaseline: b\n", "baseline: got 'b', expected one of a"),
        (HEAD + "configurations: {a: {grid: {sparse.k: []}}}\n", "configurations.a.grid"),
        (HEAD + "configurations: {a: {grid: {sparse.k: [0]}}}\n", "configurations.a.grid.sparse.k: got 0, expected"),
        (HEAD + "configurations: {a: {training: {batch: 100000}}}\n", "batch: got 100000, expected at most"),
        (HEAD + "configurations: {a: {model: {name: mlp_digits, arguments: {hiden: 3}}}}\n", "hiden"),
    ],
)
def test_a_wrong_experiment_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    done = hwsim_command("run", "study.yaml", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_check_prints_all_mistakes_of_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(HEAD + "configuration: {}\nseeds: [-1]\n")
    (tmp_path / "b.yaml").write_text("schema: acelerator/1\n")
    (tmp_path / "c.py").write_text("def model(): return None\n")
    done = hwsim_command("check", ".", cwd=tmp_path)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert sum("a.yaml" in line for line in lines) == 3, lines
    assert any("b.yaml:1: schema: got 'acelerator/1'" in line and "'accelerator'" in line for line in lines)
    assert any("c.py: model() returned NoneType" in line for line in lines)


def test_simulate_json_keeps_input_order(tmp_path: Path) -> None:
    (tmp_path / "shapes.csv").write_text("m, n, k, format\n64,32,16,\n8,8,8,float8_e4m3fn\n")
    text = invoke("simulate", "--gemms", str(tmp_path / "shapes.csv"), "--accelerator", "systolic_16x16", "--json")
    first, second = json.loads(text)
    assert (first["m"], first["n"], first["k"], first["format"]) == (64, 32, 16, "bfloat16")
    assert second["format"] == "float8_e4m3fn"
    for job in (first, second):
        assert {"cycles", "time_us", "energy_pj", "stalls", "utilization", "bytes"} <= set(job)
        assert sum(job["energy_pj"].values()) == pytest.approx(job["energy_total_pj"]["nominal"])
        assert "dram" in job["bytes"]


def test_vectors_are_written_and_two_kinds_at_once_are_refused(tmp_path: Path) -> None:
    invoke("vectors", "--mac", "bfloat16", "--n", "20", "--out", str(tmp_path))
    assert len((tmp_path / "d.hex").read_text().split()) >= 20
    done = hwsim_command("vectors", "--mac", "bfloat16", "--cast", "int8", "--out", str(tmp_path))
    assert done.returncode == 2


def test_a_topology_is_one_job_a_layer_or_one_training_step(tmp_path: Path) -> None:
    (tmp_path / "net.csv").write_text("Layer, M, N, K,\nfc1, 8, 32, 64,\nfc2, 8, 16, 32,\n")
    words = ["simulate", "--topology", str(tmp_path / "net.csv"), "--accelerator", "systolic_16x16", "--json"]
    assert [job["workload"] for job in json.loads(invoke(*words))] == ["fc1", "fc2"]
    (step,) = json.loads(invoke(*words, "--training", "--trace", str(tmp_path / "trace.json")))
    assert step["cycles"] > 0
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_simulate_with_activations_recomputed_takes_longer_and_less_memory(tmp_path: Path) -> None:
    (tmp_path / "net.csv").write_text("Layer,M,N,K\n" + "".join(f"fc{i},1,32,32\n" for i in range(12)))
    words = ["simulate", "--topology", str(tmp_path / "net.csv"), "--training", "--batch", "512", "--json"]
    words += ["--accelerator", "systolic_16x16", "--activations"]
    (kept,), (recomputed,) = (json.loads(invoke(*words, choice)) for choice in ("kept", "recomputed"))
    assert recomputed["cycles"] > kept["cycles"]
    assert recomputed["peak_memory_bytes"] < kept["peak_memory_bytes"]


def test_simulate_by_events_and_fast_agree() -> None:
    words = ["simulate", "--gemm", "33,17,65", "--accelerator", "systolic_16x16", "--json"]
    assert invoke(*words) == invoke(*words, "--engine", "events")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("m,n,q\n1,2,3\n", "shapes.csv:1: q: unknown column"),
        ("m,n,k\n1,2\n", "shapes.csv:2: k: got '', expected a whole number"),
        ("m,n,k\n1,2,3\n1,0,3\n", "shapes.csv:3: n: got '0', expected a whole number"),
        ("m,n,k\n", "shapes.csv: holds no rows"),
        ("", "shapes.csv:1: m: column is missing"),
    ],
)
def test_a_wrong_table_of_gemms_is_one_line(text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "shapes.csv").write_text(text)
    with pytest.raises(HwsimError) as caught:
        invoke("simulate", "--gemms", str(tmp_path / "shapes.csv"), "--accelerator", "systolic_16x16")
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "name", ["systolic_32x32", "quickstart", "mlp_digits", "fp8_hybrid", "digits", "e4m3", "nvfp4"]
)
def test_show_knows_every_kind(name: str) -> None:
    assert len(invoke("show", name).splitlines()) > 3


def test_what_show_prints_of_an_accelerator_is_one_again(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(invoke("show", "systolic_16x16"))
    words = ["simulate", "--gemm", "9,9,9", "--json", "--accelerator"]
    assert invoke(*words, str(tmp_path / "mine.yaml")) == invoke(*words, "systolic_16x16")


def test_list_json_is_a_list_of_objects() -> None:
    names = [row["name"] for row in json.loads(invoke("list", "formats", "--json"))]
    assert {"float32", "bfloat16", "float8_e4m3fn", "int8"} <= set(names)


def test_doctor_reports_and_leaks_no_secret() -> None:
    text = invoke("doctor")
    assert "reference: ready" in text
    assert os.environ.get("HOSTNAME", "no host name") not in text


def test_a_reader_that_stops_early_is_no_error() -> None:
    command = f"{sys.executable} -c 'from hwsim.cli.main import main; main()' list macs | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_an_interrupt_that_a_finalizer_swallowed_is_heard_at_the_next_progress() -> None:
    from hwsim.cli.screen import heeding_interrupts

    before = signal.getsignal(signal.SIGINT)
    with heeding_interrupts() as heed:
        heed()
        with contextlib.suppress(KeyboardInterrupt):  # as Python does there
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        with pytest.raises(KeyboardInterrupt):
            heed()
    assert signal.getsignal(signal.SIGINT) is before



@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_that_a_library_turns_into_its_own_error_still_interrupts(pressed: bool) -> None:
    from hwsim.cli.screen import heeding_interrupts

    class LibraryError(Exception):
        pass

    with pytest.raises(KeyboardInterrupt if pressed else LibraryError), heeding_interrupts():
        try:
            if pressed:
                signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise LibraryError from error
        raise LibraryError
