"""One results file: arrays, tables and text, without pickles.

Whatever a file holds, reading it ends in an array of the expected kind and shape or in an InputError that names it.
"""

import io
import json
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pandas as pd
from numpy.lib import format as npy
from numpy.typing import NDArray

from calmlflow.errors import CalmlflowError, InputError

MAX_FILE_BYTES = 2_000_000_000
"""A million jobs make results files of 50 MB. Counts for a file, and for what an archive unpacks to."""


def write_file(path: Path, value: Any) -> None:
    """Write an array (.npy), a mapping of arrays (.npz), a table (.csv, without its index) or a text (.json).

    The file is written aside and then renamed. None removes it.

    Raises
    ------
    CalmlflowError
        It cannot be written.
    """
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        if value is None:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(_encode(path.suffix, value))
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise CalmlflowError(f"{path} cannot be written: {error.strerror or error}") from None


def read_npy(path: Path, shape: tuple[int | None, ...]) -> NDArray[np.float64]:
    """The array of numbers in a .npy file; None in ``shape`` stands for any length."""
    return numbers(_unpickled(_decode(_read_bytes(path), str(path)), str(path)), shape, str(path))


def read_npz(path: Path, keys: tuple[str, ...] = ()) -> dict[str, NDArray[Any]]:
    """The arrays of a .npz file by name, in the file's order; ``keys`` must be among them."""
    members = {key: _unpickled(array, f"{path}, {key}") for key, array in _members(path).items()}
    return _with_keys(members, keys, path)


def read_npz_unless_pickled(path: Path, keys: tuple[str, ...] = ()) -> dict[str, NDArray[Any]] | None:
    """Like `read_npz`, but None and a warning that names the file where it holds pickled objects."""
    members = {}
    for key, array in _members(path).items():
        if array is None:
            warnings.warn(f"{path}, {key} is a pickled object array, which is never read; skipped", stacklevel=2)
            return None
        members[key] = array
    return _with_keys(members, keys, path)


def read_csv(path: Path, columns: tuple[str, ...], dtype: Any = str) -> pd.DataFrame:
    """The table in a .csv file, as text or as the dtypes that pandas is told; ``columns`` must be among its own."""
    data = _read_bytes(path)
    # A file cut in the middle of its last number would still parse; writers end every row with a newline.
    if not data.endswith(b"\n"):
        raise InputError(f"{path} is damaged (its last line has no end); expected columns {', '.join(columns)}")
    try:
        table = pd.read_csv(io.BytesIO(data), dtype=dtype, keep_default_na=False, low_memory=False)
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(f"{path} is damaged ({_first_line(error)}); expected columns {', '.join(columns)}") from None
    if absent := [column for column in columns if column not in table.columns]:
        raise InputError(f"{path} has no column {absent[0]!r}; expected columns {', '.join(columns)}")
    return table


def read_json_text(path: Path) -> str:
    """The one text in a .json file."""
    try:
        text = json.loads(_read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({_first_line(error)}); expected one JSON string") from None
    if not isinstance(text, str):
        raise InputError(f"{path} holds JSON of another kind; expected one string")
    return text


def numbers(array: NDArray[Any], shape: tuple[int | None, ...], where: str) -> NDArray[np.float64]:
    """The array as float64, if it holds numbers and has the shape; None in ``shape`` stands for any length."""
    if array.dtype.kind not in "biuf":
        raise InputError(f"{where} holds {array.dtype} values; expected numbers")
    if len(array.shape) != len(shape) or any(
        want is not None and have != want for have, want in zip(array.shape, shape, strict=True)
    ):
        expected = "(" + ", ".join("n" if want is None else str(want) for want in shape) + ")"
        raise InputError(f"{where} has shape {array.shape}; expected {expected}")
    return array.astype(np.float64)


def integers(array: NDArray[np.float64], where: str) -> NDArray[np.int64]:
    """The array as int64, if all its values are whole numbers."""
    if not np.all(np.isfinite(array) & (array == np.round(array))):
        raise InputError(f"{where} holds a value that is no whole number; expected whole numbers only")
    return array.astype(np.int64)


def strings(array: NDArray[Any], where: str) -> NDArray[np.str_]:
    """The array as fixed-width text, if it is one row of text; an empty array of any kind counts as such."""
    if array.ndim != 1 or (array.dtype.kind != "U" and array.size > 0):
        raise InputError(f"{where} holds {array.dtype} values of shape {array.shape}; expected one row of text")
    return array.astype(np.str_)


def _encode(suffix: str, value: Any) -> bytes:
    buffer = io.BytesIO()
    if suffix == ".npy":
        np.save(buffer, value, allow_pickle=False)
    elif suffix == ".npz":
        np.savez(buffer, allow_pickle=False, **value)
    elif suffix == ".csv":
        value.to_csv(buffer, index=False)
    else:
        buffer.write(json.dumps(value).encode())
    return buffer.getvalue()


def _read_bytes(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path} has {size} bytes; expected at most {MAX_FILE_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing; expected a results file there") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def _members(path: Path) -> dict[str, NDArray[Any] | None]:
    """The arrays of an archive by name; None for an array of objects."""
    data = _read_bytes(path)
    # zipfile raises at least BadZipFile, zlib.error, EOFError, NotImplementedError and RuntimeError on damaged bytes.
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if unpacked > MAX_FILE_BYTES:
                raise InputError(f"{path} unpacks to {unpacked} bytes; expected at most {MAX_FILE_BYTES}")
            contents = {name.removesuffix(".npy"): archive.read(name) for name in archive.namelist()}
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path} is damaged ({_first_line(error)}); expected a .npz archive") from None
    return {key: _decode(content, f"{path}, {key}") for key, content in contents.items()}


def _decode(data: bytes, where: str) -> NDArray[Any] | None:
    """The array in the bytes of a .npy file; None for an array of objects."""
    buffer = io.BytesIO(data)
    # The header is looked at first: objects are refused before numpy meets them, and a false size before it allocates.
    # numpy parses headers with Python's own parser, whose errors are of many kinds.
    try:
        read_header = npy.read_array_header_1_0 if npy.read_magic(buffer) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read_header(buffer)
        if dtype.hasobject:
            return None
        if math.prod(shape) * dtype.itemsize != len(data) - buffer.tell():
            raise ValueError(f"its header speaks of {math.prod(shape)} values")
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise InputError(f"{where} is damaged ({_first_line(error)}); expected one .npy array") from None


def _unpickled(array: NDArray[Any] | None, where: str) -> NDArray[Any]:
    if array is None:
        raise InputError(f"{where} is a pickled object array, which is never read; expected numbers or text")
    return array


def _with_keys(members: dict[str, NDArray[Any]], keys: tuple[str, ...], path: Path) -> dict[str, NDArray[Any]]:
    if absent := [key for key in keys if key not in members]:
        raise InputError(f"{path} has no {absent[0]!r}; expected {', '.join(keys)}")
    return members


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
