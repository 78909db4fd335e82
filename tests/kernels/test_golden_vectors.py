"""Golden vectors: what stands in the files is what the arithmetic gives, edge cases first."""

from __future__ import annotations

import numpy as np
import pytest

import hwsim
from hwsim.arithmetic.codec import decode_code
from hwsim.arithmetic.named import parse_format
from hwsim.errors import SpecError, UnsupportedError
from hwsim.kernels.vectors import edge_values, write_mac_vectors, write_quantizer_vectors


def read_hex(path):
    """Read a file as `$readmemh` does: words in hex, // starts a comment."""
    lines = [line.split("//")[0].split() for line in path.read_text().splitlines()]
    return [[int(word, 16) for word in words] for words in lines if words]


@pytest.mark.parametrize(("mac", "inputs", "result"), [
    ("bfloat16", "float8_e5m2", "bfloat16"),
    ("int16", "int8", "int16"),
    ("h200.float8_e4m3fn.float32.wgmma", None, "float32"),
    ("e5m3, order=chunked(2)", "float8_e4m3fn", "e5m3"),
])  # fmt: skip
def test_files_hold_operands_and_right_answers(tmp_path, mac, inputs, result):
    files = write_mac_vectors(mac, 40, tmp_path, inputs=inputs)
    assert {f.name for f in files} == {"a.hex", "b.hex", "c.hex", "d.hex", "vectors.vh", "vectors.npz"}
    words = {name: read_hex(tmp_path / f"{name}.hex") for name in "abcd"}
    stored = np.load(tmp_path / "vectors.npz")
    fmt = parse_format(inputs or "float8_e4m3fn")
    for i in (0, 3, 19, 39):
        a, b = ([decode_code(fmt, code) for code in words[name][i]] for name in "ab")
        c = decode_code(parse_format(result), words["c"][i][0])
        d = decode_code(parse_format(result), words["d"][i][0])
        with hwsim.backend("numba"):
            left, right = np.array([a], np.float32), np.array(b, np.float32)[:, None]
            expected = hwsim.matmul(left, right, mac, np.full((1, 1), c))
        assert np.array_equal(expected[0, 0], d, equal_nan=True)
        assert np.array_equal(stored["d"][i], d, equal_nan=True)
    header = (tmp_path / "vectors.vh").read_text()
    assert "localparam VECTORS = 40;" in header and f"localparam TERMS = {len(words['a'][0])};" in header


def test_edge_values_come_first(tmp_path):
    write_quantizer_vectors("float8_e4m3fn", 60, tmp_path)
    stored = np.load(tmp_path / "vectors.npz")
    edges = edge_values(parse_format("float8_e4m3fn"))
    assert np.array_equal(stored["x"][: len(edges)], np.array(edges, np.float32), equal_nan=True)
    assert 0.0 in edges and 448.0 in edges and 2.0**-9 in edges
    with hwsim.backend("reference"):
        assert np.array_equal(hwsim.quantize(stored["x"], "float8_e4m3fn"), stored["d"], equal_nan=True)


def test_what_has_no_single_answer_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="random"):
        write_mac_vectors("bfloat16 stochastic", 4, tmp_path)
    with pytest.raises(SpecError, match="n 0"):
        write_mac_vectors("bfloat16", 0, tmp_path)
