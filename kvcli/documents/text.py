"""Bytes to text: UTF-8, UTF-16 and UTF-32 with a byte order mark, and mostly-UTF-8 with damage.

A damaged file is repaired byte by byte: what is valid UTF-8 stays what it is, and only the bytes that are not
are read as Windows-1252, which is what they nearly always are. The number of them is reported.
"""

import codecs
import re

from kvcli.errors import InputError

BAD_SHARE = 0.20
"""Above this share of bytes that are not UTF-8 the encoding is another one, and guessing would be lying."""

CONTROL_SHARE = 0.05
"""Above this share of control characters the bytes are data, not text."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")
_CONTROL = bytes(c for c in range(32) if c not in b"\t\n\r\f\b\x1b") + b"\x7f"


def decode(data: bytes, name: str, quoted: str) -> tuple[str, list[str]]:
    """The text of ``data`` with ``\\n`` line ends, and what had to be repaired.

    ``name`` is how messages call the document and ``quoted`` how a shell does. Raises ``InputError`` for
    binary data and for encodings that cannot be told.
    """
    encoding, data = _strip_bom(data)
    warnings: list[str] = []
    if encoding == "utf-8":
        _refuse_binary(data, name, quoted)
        text, warnings = _utf8(data, name, quoted)
    else:
        text = data.decode(encoding, "replace")
        if broken := text.count("\ufffd"):
            warnings.append(f"{name}: {_units(broken)} not valid {encoding[:6].upper()} and became U+FFFD")
    return text.replace("\r\n", "\n").replace("\r", "\n"), warnings


def _strip_bom(data: bytes) -> tuple[str, bytes]:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return encoding, data[len(bom) :]
    return "utf-8", data


def _refuse_binary(data: bytes, name: str, quoted: str) -> None:
    if zeros := data.count(0):
        raise InputError(
            f"{name} is binary, not text: {zeros:,} of its {len(data):,} bytes are NUL",
            f"if it is text all the same: tr -d '\\000' < {quoted} | kvcli ask \"…\"",
        )
    controls = len(data) - len(data.translate(None, _CONTROL))
    if controls > CONTROL_SHARE * len(data):
        raise InputError(
            f"{name} is binary, not text: {controls:,} of its {len(data):,} bytes are control characters",
            f"see what it is: file {quoted}",
        )


def _utf8(data: bytes, name: str, quoted: str) -> tuple[str, list[str]]:
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
    text = data.decode("utf-8", "surrogateescape")
    bad = len(_ESCAPED.findall(text))
    if cut:  # in the middle of a character, at the very end: the only fault there is
        text = text[:-bad] + "\ufffd"
        return text, [f"{name}: its last character is cut off ({_units(bad)} left of it) and became U+FFFD"]
    if bad > BAD_SHARE * len(data):
        raise InputError(
            f"{name} is in an unknown encoding: {bad:,} of its {len(data):,} bytes are not UTF-8",
            f'name its encoding: iconv -f ENCODING -t utf-8 {quoted} | kvcli ask "…"',
        )
    text = _ESCAPED.sub(lambda m: bytes([ord(m[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return text, [f"{name}: {_units(bad)} not UTF-8 and read as Windows-1252"]


def _units(n: int) -> str:
    return "1 byte was" if n == 1 else f"{n:,} bytes were"
