"""Asking tensor cores: the program's layout, the model against real chips' vectors, and verdicts about right and
wrong chips."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hwsim.arithmetic.codec import decode_code
from hwsim.arithmetic.named import parse_format
from hwsim.measurement.tensor_core import (
    LAYER,
    Examiner,
    chip_name,
    execute,
    gemm_tiles,
    hwsim_emulation,
    round_codes,
    same_codes,
    step_words,
    to_codes,
)
from hwsim.measurement.tensor_core_model import HYPOTHESES, chip_parameters, fused_dots
from hwsim.measurement.tensor_core_source import (
    ELEMENT_BYTES,
    INSTRUCTIONS,
    Instruction,
    compile_program,
    source,
)
from hwsim.measurement.tensor_core_vectors import LAYOUT, Batch, ask, batches, decode, encode, questions

BFLOAT16 = Instruction("mma", "bfloat16", "float32")
FP8 = Instruction("wgmma", "float8_e4m3fn", "float32")
BY_ID = {instruction.id: instruction for instruction in INSTRUCTIONS}


@pytest.mark.parametrize("fmt", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"])
def test_codes_mean_what_the_format_says(fmt):
    number = parse_format(fmt)
    every = np.arange(1 << number.bits, dtype=np.uint16 if number.bits == 16 else np.uint8)
    ours = decode(every, fmt)
    theirs = np.array([decode_code(number, int(code)) for code in every])
    assert np.array_equal(ours, theirs, equal_nan=True)
    finite = np.isfinite(ours)
    assert np.array_equal(encode(ours[finite], fmt), every[finite])


def test_tf32_reads_no_low_bits_and_a_value_that_does_not_fit_is_refused():
    assert decode(np.array([0x3F801FFF], np.uint32), "tf32")[0] == 1.0
    with pytest.raises(ValueError, match="does not hold"):
        encode(1 + 2.0**-10, "bfloat16")
    with pytest.raises(ValueError, match="does not hold"):
        encode(448.5, "float8_e4m3fn")


# ---- the fragments, by the formulas of the PTX ISA ("Matrix fragments for mma.m16n8k16 / k8 / k32")


def ptx_a(element, lane, bytes_):
    """Row and column of element i of fragment A in a lane, as the PTX ISA writes it for each shape."""
    group, thread = lane >> 2, lane % 4
    if bytes_ == 2:  # m16n8k16
        row = group if element < 2 or 4 <= element < 6 else group + 8
        return row, thread * 2 + (element & 1) + (8 if element >= 4 else 0)
    if bytes_ == 4:  # m16n8k8
        return (group if element in (0, 2) else group + 8), thread + (4 if element >= 2 else 0)
    row = group if element < 4 or 8 <= element < 12 else group + 8  # m16n8k32
    return row, thread * 4 + (element & 3) + (16 if element >= 8 else 0)


def ptx_b(element, lane, bytes_):
    """Row (k) and column (n) of element i of fragment B."""
    group, thread = lane >> 2, lane % 4
    if bytes_ == 2:
        return thread * 2 + (element & 1) + (8 if element >= 2 else 0), group
    if bytes_ == 4:
        return thread + (4 if element >= 1 else 0), group
    return thread * 4 + (element & 3) + (16 if element >= 4 else 0), group


@pytest.mark.parametrize("bytes_", [1, 2, 4])
def test_registers_hold_the_fragments_of_the_ptx_isa(bytes_):
    per_word = 4 // bytes_
    for lane in range(32):
        g, t = lane // 4, lane % 4
        for register in range(4):  # a0..a3 of the program: row g + 8 (r mod 2), word t + 4 (r div 2)
            row, word = g + 8 * (register % 2), t + 4 * (register // 2)
            for part in range(per_word):
                assert ptx_a(register * per_word + part, lane, bytes_) == (row, word * per_word + part)
        for register in range(2):  # b0, b1: column g, word t + 4 r
            for part in range(per_word):
                assert ptx_b(register * per_word + part, lane, bytes_) == ((t + 4 * register) * per_word + part, g)


def test_the_program_loads_what_this_test_checked():
    text = source(BFLOAT16)
    assert "a0 = rows[g * 8 + t], a1 = rows[(g + 8) * 8 + t];" in text
    assert "a2 = rows[g * 8 + t + 4], a3 = rows[(g + 8) * 8 + t + 4];" in text
    assert "shared[(i % 8 / 4) * 32 + i / 8 * 4 + i % 4] = columns[i]" in source(FP8)
    assert "b0 = columns[g * 8 + t], b1 = columns[g * 8 + t + 4]" in text
    assert "@" not in text.replace("@p", "")
    for instruction in INSTRUCTIONS:
        assert instruction.ptx in source(instruction)


def test_core_matrices_of_wgmma_hold_16_bytes_of_k_of_every_column():
    shared = {}
    for place in range(64):  # word `place` of the columns: column place / 8, word place % 8
        shared[(place % 8 // 4) * 32 + place // 8 * 4 + place % 4] = (place // 8, place % 8)
    for half in range(2):
        for column in range(8):
            row_of_16_bytes = [shared[half * 32 + column * 4 + word] for word in range(4)]
            assert row_of_16_bytes == [(column, half * 4 + word) for word in range(4)]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not at hand")
@pytest.mark.parametrize("name", BY_ID)
def test_every_program_compiles(name, tmp_path):
    program, message = compile_program(BY_ID[name], tmp_path, "9.0")
    assert program is not None, message


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not at hand")
def test_a_program_that_does_not_compile_gives_the_compiler_s_words(tmp_path):
    program, message = compile_program(Instruction("wgmma", "bfloat16", "float32"), tmp_path, "8.0")
    assert program is None and "wgmma" in message and str(tmp_path) not in message


def test_a_missing_compiler_is_a_finding(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    program, message = compile_program(BFLOAT16, tmp_path, "9.0")
    assert program is None and "nvcc" in message


# ---- running a program: a Python program stands in for the compiled one


def test_a_program_gets_tiles_step_by_step_and_its_result_comes_back(tmp_path):
    batch = next(b for b in batches(BFLOAT16, 2000) if b.regime == "chain")
    program = tmp_path / "program"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, numpy as np\n"
        "data = np.fromfile(sys.argv[1], np.uint32)\n"
        "tiles, steps, with_c = data[:3]\n"
        "a = data[3:3 + tiles * steps * 16 * 8].reshape(tiles, steps, 16, 8)\n"
        "b = data[3 + a.size:3 + a.size + tiles * steps * 64].reshape(tiles, steps, 8, 8)\n"
        "c = data[3 + a.size + b.size:].reshape(tiles, 16, 8)\n"
        "assert with_c == 1\n"
        "(c + a[:, -1, :, :8] * 3 + b[:, 1].repeat(2, axis=1)).astype(np.uint32).tofile(sys.argv[2])\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    got = execute(program, BFLOAT16, batch)
    last = np.ascontiguousarray(batch.a[:, :, 48:]).view(np.uint32)  # 16 bfloat16 of the fourth step are 8 words
    second = np.ascontiguousarray(batch.b[:, :, 16:32]).view(np.uint32)
    with np.errstate(over="ignore"):
        assert np.array_equal(got, batch.c + last * np.uint32(3) + second.repeat(2, axis=1))
    program.write_text("#!/bin/sh\necho no device >&2\nexit 3\n")
    with pytest.raises(RuntimeError, match="no device"):
        execute(program, BFLOAT16, batch)


def test_steps_are_cut_along_k():
    codes = np.arange(2 * 3 * 64, dtype=np.uint16).reshape(2, 3, 64)
    words = step_words(codes, 4)
    assert words.shape == (2, 4, 3, 16)
    assert np.array_equal(words[1, 2, 0], codes[1, 0, 32:48])


# ---- the model against vectors read off real chips


def chip_vectors():
    folder = os.environ.get("HWSIM_DATA")
    return Path(folder) / "tensor_core" if folder else None


NAMES = {"fp16": "float16", "bf16": "bfloat16", "tf32": "tf32", "E4M3": "float8_e4m3fn", "E5M2": "float8_e5m2"}


@pytest.mark.data
@pytest.mark.skipif(chip_vectors() is None, reason="HWSIM_DATA is not set")
@pytest.mark.parametrize("chip", ["H200", "A100", "Ada"])
@pytest.mark.parametrize("short", NAMES)
def test_the_model_gives_the_results_of_real_chips(chip, short):
    path = chip_vectors() / f"{chip}_{short}.npz"
    if not path.exists():
        pytest.skip(f"no vectors of {short} on {chip}")
    stored = np.load(path)
    fmt = NAMES[short]

    def values(name):
        raw = stored[name][:1500]
        return decode(raw, "tf32") if fmt == "tf32" and name in "ab" else decode(raw, "float32")

    a, b = values("a"), values("b")
    for output, short_output in (("float32", "d_fp32"), ("float16", "d_fp16")):
        if short_output not in stored.files:
            continue
        c = values("c")[:, 0]
        unit = "wgmma" if chip == "H200" and short.startswith("E") and output == "float32" else "mma"
        c = 0 * c if unit == "wgmma" else c
        if output == "float16":
            c = c.astype(np.float16).astype(np.float64)
        wanted = values(short_output)[:, 0]
        instruction = Instruction(unit, fmt, output)
        finite = np.isfinite(a).all(1) & np.isfinite(b).all(1) & np.isfinite(c)
        assert finite.sum() > 1000
        got = fused_dots(a[finite], b[finite], c[finite], instruction, chip.lower())
        assert np.array_equal(got, wanted[finite], equal_nan=True)
        if output == "float16":
            continue  # 24 or 25 bits make no difference to a result of 11
        other = fused_dots(
            a[finite], b[finite], c[finite], Instruction("mma", "float16", output), "ada" if chip == "H200" else "h200"
        )
        assert not np.array_equal(other, wanted[finite], equal_nan=True)  # another chip's arithmetic is seen


def test_open_questions_tell_the_hypotheses_apart():
    """Every pair of hypotheses gets a different answer to some question, for some instruction."""
    answers = {hypothesis.name: [] for hypothesis in HYPOTHESES}
    for instruction in INSTRUCTIONS:
        examiner = Examiner(instruction, "h200", lambda batch: batch.c)
        for question in questions():
            batch = ask(instruction, question)
            if batch is None or not np.isfinite([*question.a, *question.b, question.c]).all():
                continue
            for hypothesis in HYPOTHESES:
                answers[hypothesis.name].append(int(examiner.model(batch, hypothesis)[0, 0, 0]))
    kept = [tuple(values) for values in answers.values()]
    same = [(a, b) for i, a in enumerate(answers) for b in list(answers)[i + 1 :] if answers[a] == answers[b]]
    assert len(kept[0]) > 300
    assert same == [], same


def test_the_first_open_question_has_the_two_known_answers():
    question = next(q for q in questions() if q.name == "zero_times_huge")
    batch = ask(BFLOAT16, question)
    examiner = Examiner(BFLOAT16, "h200", lambda b: b.c)
    dropped, aligned = (
        decode(examiner.model(batch, h)[0, 0, :1], "float32")[0] for h in (HYPOTHESES[1], HYPOTHESES[2])
    )
    assert dropped == pytest.approx(9.386e-10, rel=1e-3) and aligned == 0.0


# ---- verdicts


@pytest.mark.parametrize(
    "name", ["float16.float32.mma", "tf32.float32.wgmma", "float8_e4m3fn.float32.wgmma", "float8_e5m2.float16.mma"]
)
def test_a_chip_that_does_what_the_model_says_has_no_mismatch(name):
    examiner = Examiner(BY_ID[name], "h200", lambda batch: batch.c)
    examiner.run = examiner.model
    finding, vectors = examiner.examine(4000)
    assert finding["mismatches"] == 0 and finding["dots"] >= 4000
    assert finding["layer"] == {"output": 0, "grad_input": 0, "grad_weight": 0}
    assert json.loads(json.dumps(finding, allow_nan=False)) == finding  # strict JSON
    assert all(
        entry["hwsim_agrees"]
        for entry in finding["questions"]
        if "inf" not in entry["name"] and "nan" not in entry["name"]
    )
    assert {key.split("/")[1] for key in vectors} == set(finding["by_regime"])


@pytest.mark.parametrize("name", BY_ID)
def test_hwsim_s_named_macs_give_what_the_model_gives(name):
    """Two implementations of one chip, on every regime, longer sums and a layer's GEMMs included."""
    instruction = BY_ID[name]
    emulate = hwsim_emulation("h200", instruction)
    assert emulate is not None
    examiner = Examiner(instruction, "h200", lambda batch: batch.c, emulate)
    examiner.run = examiner.model
    finding, _ = examiner.examine(1500)
    assert finding["mismatches"] == 0 and not any(finding["layer"].values()), finding["by_regime"]


def test_a_chip_with_another_rounding_is_caught_with_examples():
    examiner = Examiner(FP8, "h200", lambda batch: batch.c)
    wide = Examiner(Instruction("wgmma", "float16", "float32"), "h200", lambda batch: batch.c)

    def other(batch):
        """All 23 bits of the sum instead of 13."""
        as_half = Batch(
            batch.regime, *(encode(decode(x, FP8.operand), "float16") for x in (batch.a, batch.b)), batch.c, batch.steps
        )
        return wide.model(as_half)

    examiner.run = other
    finding, _ = examiner.examine(4000)
    assert finding["mismatches"] > 1000
    assert finding["by_regime"]["layout"]["mismatches"] == 0
    assert {"a", "b", "c", "chip", "hwsim"} <= set(finding["examples"][0])
    assert sum(finding["layer"].values()) > 0


def test_a_mistaken_layout_is_called_that():
    examiner = Examiner(BFLOAT16, "h200", lambda batch: batch.c)
    examiner.run = lambda batch: examiner.model(Batch(batch.regime, batch.a[:, ::-1], batch.b, batch.c, batch.steps))
    finding, _ = examiner.examine(2000)
    assert finding["mismatches"] is None and "layout" in finding["reason"]


def test_every_instruction_draws_finite_operands_in_every_regime():
    for instruction in INSTRUCTIONS:
        for batch in batches(instruction, 3000):
            for codes, fmt in (
                (batch.a, instruction.operand),
                (batch.b, instruction.operand),
                (batch.c, instruction.output),
            ):
                assert np.isfinite(decode(codes, fmt)).all(), (instruction.id, batch.regime)
            assert batch.a.shape[2] == batch.steps * instruction.terms
            assert batch.a.dtype.itemsize == ELEMENT_BYTES[instruction.operand]


def test_a_layer_is_cut_into_tiles_and_nothing_is_lost():
    rng = np.random.default_rng(0)
    a, b = (round_codes(rng.standard_normal(shape), "bfloat16") for shape in ((64, 32), (16, 32)))
    tiles = gemm_tiles(a, b, BFLOAT16)
    assert tiles.a.shape == (8, 16, 32) and tiles.b.shape == (8, 8, 32)
    values = decode(tiles.a, "bfloat16") @ np.swapaxes(decode(tiles.b, "bfloat16"), 1, 2)
    whole = values.reshape(4, 2, 16, 8).transpose(0, 2, 1, 3).reshape(64, 16)
    assert np.array_equal(whole, decode(a, "bfloat16") @ decode(b, "bfloat16").T)
    assert all(size % 64 == 0 for size in LAYER)


def test_results_compare_by_bits_with_one_nan():
    codes = to_codes(np.array([0.0, -0.0, np.nan, 1.0]), "float32")
    assert codes[2] == 0x7FFFFFFF
    other = np.array([0x80000000, 0x80000000, 0x7FC00000, 0x3F800000], np.uint32)
    assert same_codes(codes, other, "float32").tolist() == [False, True, True, True]


def test_chips_are_known_by_the_device_s_name():
    assert (
        chip_name("NVIDIA H200") == "h200"
        and chip_name("NVIDIA A100-SXM4-80GB") == "a100"
        and chip_name("Tesla T4") == ""
    )
    assert chip_parameters("h200", FP8) == (32, 13, False)
    assert chip_parameters("h200", Instruction("mma", "float8_e5m2", "float16")) == (16, 25, True)
    assert chip_parameters("a100", FP8) is None
    assert set(LAYOUT) >= set(ELEMENT_BYTES)


# ---- the chip's own recording, once there is one

RECORDED = Path(__file__).parents[2] / "reports" / "gpu_h200" / "tensor_core.npz"


@pytest.mark.parametrize("name", BY_ID)
def test_recorded_results_of_the_chip_stay_true(name):
    if not RECORDED.exists():
        pytest.skip("no tensor core was asked yet: reports/gpu_h200/tensor_core.npz is missing")
    findings = {case["id"]: case for case in json.loads(RECORDED.with_suffix(".json").read_text())["cases"]}
    stored, instruction = np.load(RECORDED), BY_ID[name]
    emulate = hwsim_emulation("h200", instruction)
    assert emulate is not None
    for regime in {key.split("/")[1] for key in stored.files if key.startswith(f"{name}/")}:
        a, b, c, d = (stored[f"{name}/{regime}/{part}"] for part in "abcd")
        batch = Batch(regime, a[:, None], b[:, None], c[:, None, None])
        right = same_codes(emulate(batch)[:, 0, 0], d, instruction.output)
        assert right.all() or findings[name]["by_regime"][regime]["mismatches"] > 0


def test_a_fake_nvcc_cannot_take_the_run_down(tmp_path, monkeypatch):
    """Compiling goes through a process with a time limit; whatever it says becomes text."""
    fake = tmp_path / "nvcc"
    fake.write_text("#!/bin/sh\necho error: this compiler is broken >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert subprocess.run(["nvcc"], capture_output=True, check=False).returncode == 1
    assert compile_program(BFLOAT16, tmp_path, "9.0") == (None, "error: this compiler is broken")
