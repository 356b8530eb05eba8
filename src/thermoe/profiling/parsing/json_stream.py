"""Reads a large JSON trace piece by piece: one event in memory at a time, plain or gzipped."""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, cast

from thermoe.errors import DataError

_CHUNK_CHARS = 1 << 20
_MOST_CHARS = 32 << 20
_SPACE = re.compile(r"[ \t\r\n]*")
_GZIP_MAGIC = b"\x1f\x8b"


class JsonStream:
    """Walks over the top of a JSON document.

    Args:
        path: The file.

    Raises:
        DataError: From every method, if the text ends early or is no JSON; a single value may take 32 MB.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            is_zipped = file.read(2) == _GZIP_MAGIC
        raw = gzip.GzipFile(path, "rb") if is_zipped else path.open("rb")  # closed by `close`
        self._file = TextIOWrapper(cast(IO[bytes], raw), encoding="utf-8-sig", errors="replace")
        self._decoder = json.JSONDecoder()
        self._text, self._at, self._is_end = "", 0, False

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def members(self, list_name: str, on_item: Callable[[Any], None]) -> Iterator[tuple[str, Any]]:
        """Name and value of each member of the top object; items of the list `list_name` go to `on_item`.

        A document that is a list is taken as that list.
        """
        if self._peek() == "[":
            self._items(on_item)
            return
        self._expect("{")
        is_first = True
        while self._next_of("}", is_first):
            is_first = False
            name = self._value()
            self._expect(":")
            if name == list_name and self._peek() == "[":
                self._items(on_item)
            else:
                yield str(name), self._value()

    def _items(self, on_item: Callable[[Any], None]) -> None:
        self._expect("[")
        is_first = True
        while self._next_of("]", is_first):
            is_first = False
            on_item(self._value())

    def _next_of(self, closing: str, is_first: bool) -> bool:
        """Whether another member or item follows; takes the comma, or the closing sign."""
        sign = self._peek()
        if sign == closing:
            self._at += 1
            return False
        if not is_first:
            self._expect(",")
        return True

    def _peek(self) -> str:
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches nothing too
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise DataError(f"{self._path} ends in the middle of the trace: it is truncated; record it again")

    def _expect(self, sign: str) -> None:
        got = self._peek()
        if got != sign:
            raise DataError(f"{self._path} is not a JSON trace: got {got!r} where {sign!r} was needed; export it again")
        self._at += 1

    def _value(self) -> Any:
        """The value that begins here; more text is read until it is whole."""
        self._peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                if isinstance(error, RecursionError) or not self._more():
                    raise DataError(
                        f"{self._path} is truncated or not JSON ({_reason(error)}): export the trace again"
                    ) from None
                continue
            if end == len(self._text) and self._more():  # a number may go on in the next piece
                continue
            self._at = end
            return value

    def _more(self) -> bool:
        """Append the next piece; false at the end of the file."""
        if self._is_end:
            return False
        if len(self._text) - self._at > _MOST_CHARS:
            raise DataError(f"{self._path} has a single value of more than 32 MB: it is no profiler trace")
        try:
            # the longer the value, the larger the piece, so that a long one is not decoded over and over
            piece = self._file.read(max(_CHUNK_CHARS, len(self._text) - self._at))
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{self._path} cannot be unpacked ({_reason(error)}): record it again") from None
        self._text, self._at = self._text[self._at :] + piece, 0
        self._is_end = not piece
        return not self._is_end


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
