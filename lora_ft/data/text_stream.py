"""A file of text as a stream: gzip undone, a byte order mark removed, and a message that says which byte is no UTF-8.

One file: train.csv.gz
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from lora_ft.data.progress import reading_bar
from lora_ft.errors import DataError

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
BLOCK_CHARACTERS = 1 << 16


class TextStream(NamedTuple):
    """A text that is being read.

    Attributes:
        text: What is left of it; line ends as they are in the file.
        seen: Moves the progress bar to where the text is read.
    """

    text: io.TextIOWrapper
    seen: Callable[[], None]


@contextmanager
def opened(file: Path, *, newline: Literal["", "\n"] = "\n") -> Iterator[TextStream]:
    r"""Opens a text file, with a progress bar if reading it takes longer than two seconds.

    Args:
        file: The file, or one with .gz.
        newline: What ends a line: "\n" alone, or with "" also "\r" and "\r\n".

    Raises:
        DataError: It cannot be read, is damaged, is UTF-16, or is not UTF-8; says at which line.
    """
    try:
        size = file.stat().st_size
        with _raw(file) as raw, _unpacked(file, raw) as data, reading_bar(file, total=size, unit="B") as moved:
            if _beginning(data).startswith(UTF16_MARKS):
                raise DataError(
                    f"{file}: the text is UTF-16. Expected UTF-8: `iconv -f UTF-16 -t UTF-8`, or save as CSV UTF-8"
                )
            with io.TextIOWrapper(data, encoding="utf-8-sig", newline=newline) as text:
                yield TextStream(text, lambda: moved(raw.tell()))
    except UnicodeDecodeError as error:
        raise _not_utf8(file) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{file}: is not a whole gzip file ({error}). Copy or compress it again") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}. Check the path") from error


def is_blank(file: Path) -> bool:
    """Whether a file has nothing but white space.

    Raises:
        DataError: As `opened`.
    """
    with opened(file) as stream:
        while block := stream.text.read(BLOCK_CHARACTERS):
            if block.strip():
                return False
    return True


def whole_text(file: Path) -> str:
    """All of a file, for the formats that are one piece.

    Raises:
        DataError: As `opened`.
    """
    with opened(file) as stream:
        return stream.text.read()


def _raw(file: Path) -> io.BufferedReader:
    return file.open("rb")


def _unpacked(file: Path, raw: io.BufferedReader) -> IO[bytes]:
    packed = file.name.lower().endswith(".gz")
    return io.BufferedReader(gzip.GzipFile(fileobj=raw)) if packed else raw


def _beginning(data: IO[bytes]) -> bytes:
    assert isinstance(data, io.BufferedReader)
    return data.peek(2)[:2]


def _not_utf8(file: Path) -> DataError:
    """Says where the first byte is that is no UTF-8: a line never ends within a character, so lines are enough."""
    position = 0
    with _raw(file) as raw, _unpacked(file, raw) as data:
        for number, line in enumerate(data, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                return DataError(
                    f"{file}:{number}: byte 0x{line[error.start]:02x} at position {position + error.start} is not "
                    "UTF-8. Expected UTF-8 text: find out the encoding and convert, "
                    "`iconv -f WINDOWS-1252 -t UTF-8` (or GB18030, LATIN1, ...), or save as UTF-8"
                )
            position += len(line)
    return DataError(f"{file}: changed while it was read. Run it again when nothing writes to it")
