"""Bytes to text: Unicode with or without its mark, mostly-UTF-8 with damage, and the older encodings by guess.

A damaged file is repaired byte by byte: what is valid UTF-8 stays what it is, and only the bytes that are not
are read as Windows-1252, which is what they nearly always are. Where hardly anything beyond ASCII is UTF-8 the text
was written in another encoding, and charset-normalizer tells which. Either is said, with the numbers.
"""

import codecs
import re

from kvcli.errors import InputError

SPARSE = 0.03
"""Below this share of bytes beyond ASCII there is too little to tell an encoding by; Windows-1252 is the likeliest."""

FEW = 4
"""So many bytes beyond ASCII tell no encoding either."""

SAMPLE = 1 << 18
"""Bytes by which an encoding is told."""

CONTROL_SHARE = 0.05
"""Above this share of control characters the bytes are data, not text."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_USUAL = re.findall(
    r"\S+",
    "cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 iso8859_2 iso8859_5 iso8859_7 iso8859_9 "
    "koi8_r koi8_u cp437 cp850 cp852 cp866 mac_roman mac_cyrillic cp932 shift_jis_2004 euc_jis_2004 iso2022_jp "
    "gb18030 big5 big5hkscs cp949 johab tis_620 cp874",
)
"""Encodings that people have; the rest only makes guesses worse."""

_ESCAPED = re.compile("[\udc80-\udcff]")
_CONTROL = bytes(c for c in range(32) if c not in b"\t\n\r\f\b\x1b") + b"\x7f"


def decode(data: bytes, name: str, quoted: str) -> tuple[str, list[str]]:
    """The text of ``data`` with ``\\n`` line ends, and what had to be repaired.

    ``name`` is how messages call the document and ``quoted`` how a shell does. Raises ``InputError`` for
    binary data and for encodings that cannot be told.
    """
    encoding, data = _strip_bom(data)
    if encoding == "utf-8" and (wide := _wide(data)):
        encoding = wide
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


def _wide(data: bytes) -> str | None:
    """UTF-16 without its mark, told by the zeros beside its ASCII letters."""
    head = data[:4096]
    if len(head) < 4 or len(data) % 2:
        return None
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > len(head) // 4 and not even:
        return "utf-16-le"
    return "utf-16-be" if even > len(head) // 4 and not odd else None


def _utf8(data: bytes, name: str, quoted: str) -> tuple[str, list[str]]:
    try:
        return data.decode("utf-8"), []
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data"
    text = data.decode("utf-8", "surrogateescape")
    bad = len(_ESCAPED.findall(text))
    if cut and not _ESCAPED.search(text[:-bad]):
        text = text[:-bad] + "\ufffd"  # in the middle of a character, at the very end: the only fault there is
        return text, [f"{name}: its last character is cut off ({_units(bad)} left of it) and became U+FFFD"]
    good = sum(c > "\x7f" for c in text) - bad
    if good < bad and bad > max(FEW, SPARSE * len(data)):
        return _guess(data, name, quoted, bad)
    text = _ESCAPED.sub(lambda m: bytes([ord(m[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return text, [f"{name}: {_units(bad)} not UTF-8 and read as Windows-1252"]


def _guess(data: bytes, name: str, quoted: str, bad: int) -> tuple[str, list[str]]:
    """A text in an encoding that only its letters tell."""
    from charset_normalizer import from_bytes

    sample = data if len(data) <= SAMPLE else data[: data.rfind(b"\n", 0, SAMPLE) + 1 or SAMPLE]
    best = from_bytes(sample, cp_isolation=_USUAL).best()
    if best is None:
        raise InputError(
            f"{name} is in an unknown encoding: {bad:,} of its {len(data):,} bytes are not UTF-8",
            f'name its encoding: iconv -f ENCODING -t utf-8 {quoted} | kvcli ask "…"',
        )
    text = data.decode(best.encoding, "replace")
    broken = text.count("\ufffd")
    lost = f"; {_units(broken)} not valid in it and became U+FFFD" if broken else ""
    return text, [f"{name} is not UTF-8 and was read as {_called(best.encoding)}, which its letters suggest{lost}"]


def _called(encoding: str) -> str:
    return re.sub(r"^cp(?=125)", "Windows-", encoding).replace("iso8859_", "ISO 8859-").replace("_", "-")


def _units(n: int) -> str:
    return "1 byte was" if n == 1 else f"{n:,} bytes were"
