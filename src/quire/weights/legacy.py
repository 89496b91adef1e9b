"""Checkpoints in PyTorch's own format, converted once to safetensors in the user's cache folder.

The only module that calls `torch.load`, and only with `weights_only=True`, which refuses anything but tensors and
plain containers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import torch

from quire.core import env
from quire.core.errors import PlanError
from quire.core.log import get_logger
from quire.ops.spec import TensorSpec
from quire.plan.storage.tensor_file import TensorFile, file_order, write_tensor_file

_log = get_logger(__name__)
_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
)


def convert(path: Path) -> Path:
    """Return the safetensors twin of a `.bin` file, making it the first time.

    Tensors that share memory are written each on its own.

    Raises:
        PlanError: The file is damaged, holds something else than tensors, or the cache folder cannot be written.
    """
    folder = Path(env.cache_dir()) / "converted"
    target = folder / f"{_key(path)}.safetensors"
    if target.is_file():
        return target
    tensors = _load(path)
    _log.info("converting %s once to %s", path, target)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(target, tensors)
    except OSError as error:
        raise PlanError(
            f"{target}: expected to write the converted {path}, got: {error.strerror}. "
            "Make room, or set QUIRE_CACHE_DIR to another folder."
        ) from None
    return target


def _key(path: Path) -> str:
    """Name a file's content by its place, size and time of change, without reading it."""
    status = path.stat()
    text = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _load(path: Path) -> dict[str, torch.Tensor]:
    """Load a `.bin` file, mapped where its format allows (files from before PyTorch 1.6 do not)."""
    try:
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged file makes torch raise anything, from KeyError to UnpicklingError
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise PlanError(f"{path}: expected a PyTorch checkpoint of tensors, got: {reason} Fetch it again.") from error
    if not isinstance(state, dict):
        raise PlanError(f"{path}: expected a mapping of names to tensors, got {type(state).__name__}.")
    for name, tensor in state.items():
        fits = isinstance(tensor, torch.Tensor) and tensor.dtype in _DTYPES and tensor.layout == torch.strided
        if not isinstance(name, str) or not fits:
            got = f"{tensor.layout} {tensor.dtype}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise PlanError(f"{path}, entry {name!r}: expected a dense tensor under a name, got {got}.")
    return state


def _write(target: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write and check beside the target, then rename: a half-written file is never taken for a whole one."""
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.stem, suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        write_tensor_file(part, specs, ((name, tensors[name].detach()) for name in file_order(specs)))
        TensorFile(part).close()
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
