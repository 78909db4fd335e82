"""A Workload as files: the graph as JSON (`schema: workload/1`), kept indices in an .npz beside it, linked by hash.

`save_workload(workload, "runs/x/workload.json")` writes `workload.json` and, if something was selected,
`workload.npz`; `load_workload` reads them back to an equal workload and refuses arrays that are not the ones the JSON
was written with. `workload_hash` names the content, however it is stored.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from hwsim.errors import SpecError
from hwsim.spec import Format, MacField, Spec, dump_json, field_problem, load_json
from hwsim.workload import ConvGeometry, Gemm, Op, OpKind, Phase, Selection, Tensor, Workload

Size = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Pair = tuple[Size, Size]


class TensorEntry(Spec):
    """A tensor in the file; see `hwsim.workload.Tensor`."""

    id: str
    role: str
    shape: tuple[Size, ...]
    format: Format
    layout: str = "row_major"
    persistent: bool = False
    density: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()


class ConvEntry(Spec):
    """The geometry behind a GEMM; see `hwsim.workload.ConvGeometry`."""

    batch: Count
    in_channels: Count
    in_size: Pair
    out_channels: Count
    out_size: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: Count = 1


class OpEntry(Spec):
    """An op in the file; see `hwsim.workload.Op`."""

    id: str
    kind: str
    phase: str
    layer: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    gemm: str | None = None
    m: Size = 0
    n: Size = 0
    k: Size = 0
    groups: Count = 1
    transposed: tuple[bool, bool] = (False, False)
    mac: MacField | None = None
    conv: ConvEntry | None = None
    selection: str | None = None
    selected_axis: str | None = None
    elements: Size = 0
    operations: dict[str, Size] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _choices(self) -> OpEntry:
        for name, value, kinds in (
            ("kind", self.kind, OpKind),
            ("phase", self.phase, Phase),
            ("gemm", self.gemm, Gemm),
        ):
            allowed = [str(member) for member in kinds]
            if value is not None and value not in allowed:
                raise field_problem(name, f"got {value!r}, expected {', '.join(allowed)}")
        if self.kind == OpKind.GEMM and (min(self.m, self.n, self.k) < 1 or self.gemm is None or len(self.reads) < 2):
            raise field_problem("kind", "a gemm needs `gemm`, m, n and k of 1 or more, and two tensors to read")
        return self


class SelectionEntry(Spec):
    """A selection without its arrays, which stand in the .npz as ID/indices/0, ID/offsets/0, ..."""

    id: str
    rank_over: str
    unit: str
    rows: Size
    extent: Size
    kept: Size


class Arrays(Spec):
    """The .npz beside the JSON, and the hash of the arrays in it."""

    file: str
    sha256: str


class WorkloadFile(Spec):
    """A whole workload file."""

    SCHEMA = "workload/1"

    name: str
    batch: Count
    recorded_steps: tuple[Size, ...]
    tensors: tuple[TensorEntry, ...]
    ops: tuple[OpEntry, ...]
    selections: tuple[SelectionEntry, ...] = ()
    arrays: Arrays | None = None


def save_workload(workload: Workload, path: Path | str) -> None:
    """Write `path` (JSON) and, if anything was selected, the .npz beside it; both are replaced atomically."""
    path = Path(path)
    named = _arrays_of(workload)
    arrays = None
    if named:
        beside = path.with_suffix(".npz")
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **named)  # type: ignore[arg-type]
        _replace(beside, buffer.getvalue())
        arrays = Arrays(file=beside.name, sha256=_hash_arrays(named))
    _replace(path, dump_json(_to_file(workload, arrays)).encode())


def load_workload(path: Path | str) -> Workload:
    """Read a workload.

    Raises:
        SpecError: what is wrong, with file and line; arrays that are missing or not those that belong to the JSON.
    """
    path = Path(path)
    file = load_json(path, WorkloadFile)
    named: Mapping[str, np.ndarray] = {}
    if file.selections:
        if file.arrays is None:
            raise SpecError.at(str(path), None, "arrays", "missing; selections need the .npz with their indices")
        named = _load_arrays(path, path.parent / Path(file.arrays.file).name, file.arrays.sha256)
    return _from_file(file, named, str(path))


def workload_hash(workload: Workload) -> str:
    """SHA-256 of everything in a workload: the graph and the recorded arrays."""
    named = _arrays_of(workload)
    arrays = Arrays(file="", sha256=_hash_arrays(named)) if named else None
    return hashlib.sha256(dump_json(_to_file(workload, arrays)).encode()).hexdigest()


# ---- between the types and their entries


def _to_file(workload: Workload, arrays: Arrays | None) -> WorkloadFile:
    return WorkloadFile(
        name=workload.name,
        batch=workload.batch,
        recorded_steps=workload.recorded_steps,
        tensors=tuple(_entry(TensorEntry, tensor) for tensor in workload.tensors.values()),
        ops=tuple(_op_entry(op) for op in workload.ops),
        selections=tuple(_entry(SelectionEntry, selection) for selection in workload.selections.values()),
        arrays=arrays,
    )


def _entry(model: type[Any], value: Any) -> Any:
    return model(**{name: getattr(value, name) for name in model.model_fields})


def _op_entry(op: Op) -> OpEntry:
    values = {name: getattr(op, name) for name in OpEntry.model_fields}
    values |= {"kind": str(op.kind), "phase": str(op.phase), "gemm": None if op.gemm is None else str(op.gemm)}
    values["conv"] = None if op.conv is None else _entry(ConvEntry, op.conv)
    values["operations"] = dict(op.operations)
    return OpEntry(**values)


def _from_file(file: WorkloadFile, named: Mapping[str, np.ndarray], place: str) -> Workload:
    tensors = {entry.id: Tensor(**_values(entry)) for entry in file.tensors}
    steps = len(file.recorded_steps)
    try:
        selections = {entry.id: _selection(entry, named, steps, place) for entry in file.selections}
    except KeyError as missing:
        raise SpecError.at(place, None, "arrays", f"{missing} is missing from the .npz") from None
    ops = []
    for entry in file.ops:
        values = _values(entry) | {"kind": OpKind(entry.kind), "phase": Phase(entry.phase)}
        values["gemm"] = None if entry.gemm is None else Gemm(entry.gemm)
        values["conv"] = None if entry.conv is None else ConvGeometry(**_values(entry.conv))
        ops.append(Op(**values))
    return Workload(file.name, file.batch, tensors, tuple(ops), selections, file.recorded_steps)


def _values(entry: Spec) -> dict[str, Any]:
    return {name: getattr(entry, name) for name in type(entry).model_fields}


def _selection(entry: SelectionEntry, named: Mapping[str, np.ndarray], steps: int, place: str) -> Selection:
    indices = tuple(named[f"{entry.id}/indices/{step}"].astype(np.int32, copy=False) for step in range(steps))
    offsets: tuple[np.ndarray, ...] = ()
    if entry.rank_over == "example":
        offsets = tuple(named[f"{entry.id}/offsets/{step}"].astype(np.int64, copy=False) for step in range(steps))
    for index, found in enumerate(indices):
        if found.ndim != 1 or (len(found) and not 0 <= found.min() <= found.max() < entry.extent):
            raise SpecError.at(
                place, None, f"selections.{entry.id}", f"expected positions from 0 to extent - 1 = {entry.extent - 1}"
            )
        if offsets and not _splits(offsets[index], entry.rows, len(found)):
            raise SpecError.at(
                place,
                None,
                f"selections.{entry.id}",
                f"expected offsets of {entry.rows} rows (rows), from 0 up to {len(found)}",
            )
    return Selection(**_values(entry), indices=indices, offsets=offsets)


def _splits(offsets: np.ndarray, rows: int, count: int) -> bool:
    """Whether these offsets cut `count` indices into `rows` rows."""
    sound = offsets.shape == (rows + 1,) and offsets[0] == 0 and offsets[-1] == count
    return bool(sound and (np.diff(offsets) >= 0).all())


# ---- arrays


def _arrays_of(workload: Workload) -> dict[str, np.ndarray]:
    named = {}
    for selection in workload.selections.values():
        for kind, arrays in (("indices", selection.indices), ("offsets", selection.offsets)):
            for step, array in enumerate(arrays):
                named[f"{selection.id}/{kind}/{step}"] = array
    return named


def _hash_arrays(named: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names: compression does not matter."""
    digest = hashlib.sha256()
    for name in sorted(named):
        array = np.ascontiguousarray(named[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _load_arrays(json_path: Path, path: Path, expected: str) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            named = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a readable .npz"
        raise SpecError.at(str(json_path), None, "arrays.file", f"{path.name}: {reason}") from None
    found = _hash_arrays(named)
    if found != expected:
        raise SpecError.at(
            str(json_path),
            None,
            "arrays.sha256",
            f"{path.name} holds other arrays (got {found[:12]}..., expected "
            f"{expected[:12]}...); the two files do not belong together",
        )
    return named


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
