"""The state of a training run on disk: safetensors, written whole or not at all, never through pickle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hwsim.errors import SpecError

SCHEMA = "checkpoint/1"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors, and plain data beside them, so that a reader finds the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(owned, temporary, metadata={"schema": SCHEMA, "state": json.dumps(state)})
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the plain data. Raises SpecError for a file that is damaged or no checkpoint."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("schema") != SCHEMA:
                raise SpecError(f"{path}: schema: got {metadata.get('schema')!r}, expected {SCHEMA!r}")
            state = json.loads(metadata["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise SpecError(
            f"{path}: the checkpoint cannot be read ({type(error).__name__}); delete it to start anew"
        ) from None
