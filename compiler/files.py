"""Reading files of strangers: what they may be, and how much memory they may take."""

from __future__ import annotations

import contextlib
import json
import os
import reprlib
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from compiler.errors import ModelError

__all__ = ["opened", "read_bytes", "parse_json", "in_one_piece", "short", "one_line"]

_BRIEF = reprlib.Repr()
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 40
_BRIEF.maxlevel, _BRIEF.maxlist, _BRIEF.maxdict = 1, 3, 3


def short(value: Any) -> str:
    """The value as Python writes it, shortened to fit a line."""
    return " ".join(_BRIEF.repr(value).split())


def one_line(error: BaseException, limit: int = 160) -> str:
    """What an error of a library says, in one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else text[:limit - 3] + "..."


def _open(path: str, flags: int) -> int:
    # A pipe would block until somebody writes into it; it is refused right after.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextlib.contextmanager
def opened(path: str | Path, hint: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading; gives the file and its size in bytes.

    Parameters
    ----------
    hint : str
        What to give instead of something that is no regular file.

    Raises
    ------
    ModelError
        If it cannot be read. This and every ModelError of the block starts with the path.
    """
    try:
        with open(path, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if stat.S_ISDIR(status.st_mode):
                raise ModelError(f"cannot be read: Is a directory; {hint}")
            if not stat.S_ISREG(status.st_mode):
                raise ModelError(f"is not a regular file; {hint}")
            yield file, status.st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        reason = getattr(error, "strerror", None) or error
        raise ModelError(f"{path}: cannot be read: {reason}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def read_bytes(path: str | Path, limit: int, hint: str) -> bytes:
    """Contents of a regular file of at most ``limit`` bytes.

    Raises
    ------
    ModelError
        If it cannot be read or is larger; the message starts with the path.
    """
    with opened(path, hint) as (file, size):
        if size > limit:
            raise ModelError(f"has {size} bytes, at most {limit} can be read; {hint}")
        return file.read(limit)


def parse_json(data: bytes, what: str) -> dict:
    """The object that a JSON text holds.

    Raises
    ------
    ModelError
        If it is no JSON, nested too deep, or no object.
    """
    try:
        value = json.loads(data)
    except RecursionError:
        raise ModelError(f"is nested too deep to be {what}") from None
    except ValueError as error:
        raise ModelError(f"is no {what}: not valid JSON ({one_line(error)})") from None
    if not isinstance(value, dict):
        raise ModelError(f"is no {what}: it must hold a JSON object, not {short(value)}")
    return value


def in_one_piece(path: str | Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that appears complete or not at all: beside the path, then renamed into place.

    Raises
    ------
    ModelError
        If it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with open(temporary, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None
