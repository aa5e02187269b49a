"""Reading .npy files safely: headers without content, memory-mapped content, never pickles."""

from __future__ import annotations

import errno
import functools
import io
import json
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from hopecli.errors import CHECK_ACCESS, DataError, command_line

_LONGEST_HEADER = 1 << 16
_YAML_WORDS = {"null", "true", "false", "yes", "no", "on", "off"}  # that are no text there
_one_at_a_time = threading.Lock()  # filters of warnings belong to the process, clips are read by several threads


class ClipProblem(DataError):
    """One defect of one clip: `code` names its kind for reports, `clip` the folder."""

    def __init__(self, code: str, message: str, *, clip: str, value: object | None = None, fix: str | None = None):
        super().__init__(message, where=clip, value=value, fix=fix)
        self.code, self.clip = code, clip


class ArrayHeader(NamedTuple):
    """What the first bytes of a .npy file say."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran_order: bool
    offset: int  # bytes before the data


@functools.lru_cache(maxsize=1024)
def _parse(head: bytes) -> ArrayHeader:
    """The header in a file's first bytes. Clips of one folder share theirs, and parsing takes longer than reading."""
    file = io.BytesIO(head)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with _one_at_a_time, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Python 2 wrote lengths as 16L: read all the same
        shape, fortran_order, dtype = read(file)
    return ArrayHeader(shape, dtype, fortran_order, file.tell())


def _set_feature_map(name: str) -> str:
    """The override that names it, as it is typed: quoted for YAML and the shell where it is no plain word."""
    if re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII) and name.lower() not in _YAML_WORDS:
        return f"data.feature_map={name}"
    return command_line([f"data.feature_map={json.dumps(name, ensure_ascii=False)}"])


def read_header(path: Path, *, clip: str) -> ArrayHeader:
    """The header of a .npy file, checked against the file's size; ClipProblem when it cannot be used."""
    name = path.name
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opening a pipe waits for a writer, maybe for ever
            fix = "replace it by a file written with numpy.save"
            raise ClipProblem("unreadable", f"{name} is a pipe or device, not a file", clip=clip, fix=fix)
        with open(path, "rb") as file:
            start = file.read(12)
            length = 10 + int.from_bytes(start[8:10], "little")
            if start[6:7] != b"\x01":
                length = 12 + int.from_bytes(start[8:12], "little")
            head = start + file.read(max(0, min(length, _LONGEST_HEADER) - 12))
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError as error:
        code = "missing_actions" if name == "actions.npy" else "missing_features"
        message = f"{path.parent.name}/{name} is missing"
        if name in ("states.npy", "extrinsics.npy"):
            code = f"missing_{path.stem}"
            if path.is_symlink():
                code, message = "unreadable", f"{name} is a link that leads nowhere"
        others = feature_maps(path.parent) if code == "missing_features" else []
        fix = f"set {_set_feature_map(others[0])}" if others else "add the file or leave the clip out"
        raise ClipProblem(code, message, clip=clip, value="; ".join(others) or None, fix=fix) from error
    except OSError as error:
        message = f"{name} cannot be read: {error.strerror or error}"
        raise ClipProblem("unreadable", message, clip=clip, fix=CHECK_ACCESS) from error
    try:
        shape, dtype, fortran_order, offset = _parse(head)
    except Exception as error:  # numpy reads the header as Python text: a damaged one raises nearly anything
        raise ClipProblem(
            "unreadable",
            f"{name} is not a readable .npy file: {' '.join(str(error).split())}",
            clip=clip,
            fix="write it again with numpy.save",
        ) from error
    if dtype.hasobject:
        raise ClipProblem(
            "pickled", f"{name} holds pickled objects, which are never loaded", clip=clip, fix="save plain numbers"
        )
    too_long = math.prod(max(1, abs(length)) for length in shape) >= 2**63  # Python refuses to print the longest
    if too_long or any(isinstance(length, bool) or length < 0 for length in shape):
        shown = None if too_long else list(shape)
        raise ClipProblem("odd_shape", f"{name} announces an impossible length", clip=clip, value=shown)
    expected = offset + math.prod(shape) * dtype.itemsize
    if size < expected:
        raise ClipProblem(
            "truncated",
            f"{name} has {size} bytes where its header announces {expected}",
            clip=clip,
            fix="copy or write it again",
        )
    return ArrayHeader(shape, dtype, fortran_order, offset)


def feature_maps(folder: Path) -> list[str]:
    """The names of the .npy files in a folder, sorted; not of hidden ones, such as the `._NAME.npy` that macOS puts
    beside files on disks of other systems."""
    return sorted(path.stem for path in folder.glob("*.npy") if not path.name.startswith("."))


def map_array(path: Path, header: ArrayHeader) -> np.ndarray:
    """The file's array, memory-mapped read-only: only the parts that are used are read."""
    if 0 in header.shape:
        return np.zeros(header.shape, header.dtype)
    order = _order(header)
    return np.memmap(str(path), dtype=header.dtype, mode="r", offset=header.offset, shape=header.shape, order=order)


def read_array(path: Path, header: ArrayHeader) -> np.ndarray:
    """All of a small file's array, read-only; OSError when the file has become shorter."""
    (values,) = read_pieces(path, header, [(0, math.prod(header.shape))])
    return values.reshape(header.shape, order=_order(header))


def read_pieces(path: Path, header: ArrayHeader, pieces: Sequence[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Values start to stop of the file, as stored, for each (start, stop); OSError when the file has become shorter.

    Waiting for a mapped page would hold up every other thread; waiting for a read does not.
    """
    size = header.dtype.itemsize
    with open(path, "rb", buffering=4096) as file:  # buffered: a plain read may return less than there is
        if len(pieces) > 1 and hasattr(os, "posix_fadvise"):
            # Reading ahead between the pieces would be reading most of the file.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for start, stop in pieces:
            file.seek(header.offset + start * size)
            data = file.read((stop - start) * size)
            if len(data) != (stop - start) * size:
                raise OSError(errno.EIO, "the file has become shorter")
            yield np.frombuffer(data, header.dtype)


def _order(header: ArrayHeader) -> Literal["F", "C"]:
    return "F" if header.fortran_order else "C"


def check_finite(what: str, values: np.ndarray, *, clip: str) -> None:
    """ClipProblem `not_finite` when `values` hold NaN or infinite numbers.

    A sum in float64 is one cheap pass, and is finite exactly when float16 or float32 values are.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum(dtype=np.float64)
    if not np.isfinite(total):
        fix = "encode the clip again" if what == "features" else f"correct {what}.npy"
        raise ClipProblem("not_finite", f"{what} hold NaN or infinite values", clip=clip, fix=fix)
