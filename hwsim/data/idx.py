"""The idx file format of MNIST: a big-endian header (type, dimensions, sizes), then the values; usually gzipped."""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from hwsim.errors import SpecError

UNSIGNED_BYTE = 0x08


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of an idx file, gzipped or not.

    Raises SpecError if the file is damaged, truncated, too long, or not idx with unsigned bytes.
    """
    raw = read_bytes(path)
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise SpecError(f"{path}: not an idx file: it begins with {raw[:4].hex() or 'nothing'}, expected 0000")
    if raw[2] != UNSIGNED_BYTE:
        raise SpecError(f"{path}: idx values of type {raw[2]:#04x}, expected 0x08 (unsigned bytes)")
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise SpecError(f"{path}: the idx header is truncated: {len(raw)} bytes, expected {header}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", raw[3], 4))
    expected = prod(shape)
    if len(raw) - header != expected:
        sizes = " x ".join(map(str, shape))
        raise SpecError(f"{path}: {len(raw) - header} values, expected {expected} ({sizes}); the file is damaged")
    return np.frombuffer(raw, np.uint8, expected, header).reshape(shape)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a plain or gzipped file. Raises SpecError if it cannot be read or unpacked."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SpecError(f"{path}: the gzip data are damaged or truncated ({error})") from None
    except OSError as error:
        raise SpecError(f"{path}: cannot be read ({error.strerror})") from None
