"""Bytes to text: Unicode with or without its mark, mostly-UTF-8 with damage, and the older encodings by guess.

A damaged file is repaired byte by byte: what is valid UTF-8 stays as it is. Only the other bytes are read as
Windows-1252, which is what they nearly always are. If hardly anything beyond ASCII is UTF-8, the text was written in
another encoding, and chardet tells which. Either is said, with the numbers.
"""

import codecs
import re
import unicodedata
from collections import Counter

from kvcli.errors import InputError

SPARSE = 0.03
"""Below this share of bytes beyond ASCII, all of the words tell nothing."""

FEW = 4
"""So many bytes beyond ASCII tell no encoding."""

CLEAR = 0.45
"""By its words beyond ASCII, a text is in the likeliest encoding if Windows-1252 is not half as likely."""

DOUBT = 0.05
"""Below this confidence of chardet those words tell nothing."""

CLOSE = 0.97
"""By all of its words, a text is Windows-1252 if that is this close to the likeliest."""

SAMPLE = 1 << 17
"""Bytes from which an encoding is detected."""

STRANGE_SHARE = 0.1
"""Above this share of characters that an encoding does not have or use, a text is not in it."""

CONTROL_SHARE = 0.05
"""Above this share of control characters the bytes are data, not text."""

NARROW = 0.25
"""Bytes that are UTF-8 are UTF-16 only if more than this share of them are below the blank."""

_BOMS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_WESTERN = frozenset(("Windows-1252", "ISO-8859-1", "iso8859-15"))
_LARGER = {"SHIFT_JIS": "cp932", "GB2312": "gb18030", "GBK": "gb18030", "EUC-KR": "cp949"}
"""Encodings that people call by the name of a smaller one."""

_SHIFTS = re.compile(rb"\x1b(?:\$[@AB]|\(J|\$\([CDOQ]|\$\)C)")
"""Escape sequences of ISO 2022 that switch to another set of characters."""

_CONTROLS = re.compile(rb"[\x00-\x06\x0c\x0e\x0f]")
_DIVIDERS = " \n、。，،"
"""Characters between words and sentences; in UTF-16 they have bytes that no other text has."""

_STRANGE = ("Cc", "Cn", "Co", "Cs")

_FOREIGN = re.compile(rb"[^\s\x80-\xff]{0,40}[\x80-\xff][^\s]{0,80}")
"""Words with letters beyond ASCII."""

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
        encoding = _unmarked(data) or "utf-8"
    if encoding == "utf-8":
        _refuse_binary(data, name, quoted)
        text, warnings = _utf8(data, name, quoted)
    else:
        text = data.decode(encoding, "replace")
        if broken := text.count("\ufffd"):
            warnings.append(f"{name}: {_units(broken)} not valid {_called(encoding)} and became U+FFFD")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.replace("\n\ufeff", "\n"), warnings  # marks of files that were joined


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


def _unmarked(data: bytes) -> str | None:
    """UTF-16 without its mark, by its blanks and stops, and ISO 2022, by its escape sequences."""
    if shift := _SHIFTS.search(data[:SAMPLE]):
        return "iso2022_kr" if shift[0] == b"\x1b$)C" else "iso2022_jp_ext"
    head = data[: min(SAMPLE, len(data) // 2 * 2)]
    if len(head) < 4 or not _CONTROLS.search(head) or _is_narrow(head):
        return None
    for encoding in ("utf-16-le", "utf-16-be"):
        text = head.decode(encoding, "replace").removesuffix("\ufffd")
        counts = Counter(text)
        strange = sum(n for c, n in counts.items() if unicodedata.category(c) in _STRANGE and c not in "\t\n\r\f")
        if sum(counts[c] for c in _DIVIDERS) >= 0.01 * len(text) and strange <= 0.001 * len(text):
            return encoding
    return None


def _is_narrow(head: bytes) -> bool:
    """Whether bytes are UTF-8 with few control characters: of UTF-16 that is UTF-8 too, nearly half the bytes are."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return sum(head.count(c) for c in range(32)) < NARROW * len(head)


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
    if good < bad and bad > FEW:
        return _guess(data, name, quoted, bad)
    text = _ESCAPED.sub(lambda m: bytes([ord(m[0]) - 0xDC00]).decode("cp1252", "replace"), text)
    return text, [f"{name}: {_units(bad)} not UTF-8 and read as Windows-1252"]


def _guess(data: bytes, name: str, quoted: str, bad: int) -> tuple[str, list[str]]:
    """A text in an encoding that only its letters tell: by its words beyond ASCII, or else by the whole of it."""
    sample = data if len(data) <= SAMPLE else data[: data.rfind(b"\n", 0, SAMPLE) + 1 or SAMPLE]
    best, likely, western = _likeliest(b" ".join(_FOREIGN.findall(sample)))
    if likely < DOUBT or western > CLEAR * likely:
        if bad > SPARSE * len(data):
            best, likely, western = _likeliest(sample)
        if western >= CLOSE * likely or bad <= SPARSE * len(data):
            best = "Windows-1252"
    best = _LARGER.get(best.upper(), best)
    text = data.decode(best or "ascii", "replace")
    broken, controls = text.count("\ufffd"), sum(text.count(chr(c)) for c in range(0x80, 0xA0))
    if not best or broken + controls > STRANGE_SHARE * len(text):
        raise InputError(
            f"{name} is in an unknown encoding: {bad:,} of its {len(data):,} bytes are not UTF-8",
            f'name its encoding: iconv -f ENCODING -t utf-8 {quoted} | kvcli ask "…"',
        )
    lost = f"; {_units(broken)} not valid in it and became U+FFFD" if broken else ""
    return text, [f"{name} is not UTF-8; decoded as {_called(best)} (detected){lost}"]


def _likeliest(sample: bytes) -> tuple[str, float, float]:
    """The likeliest encoding, how likely it is, and how likely Windows-1252 is."""
    import chardet

    usual = chardet.EncodingEra.ALL & ~chardet.EncodingEra.MAINFRAME & ~chardet.EncodingEra.LEGACY_MAC
    found = [
        (f["encoding"], f["confidence"])
        for f in chardet.detect_all(sample, encoding_era=usual, no_match_encoding="ascii")
        if f["encoding"] and f["encoding"] != "ascii"
    ]
    best, likely = found[0] if found else ("", 0.0)
    return best, likely, max((c for e, c in found if e in _WESTERN), default=0.0)


def _called(encoding: str) -> str:
    return {"iso2022_jp_ext": "ISO-2022-JP", "iso2022_kr": "ISO-2022-KR"}.get(
        encoding, encoding.upper()[:6] if encoding.startswith("utf") else encoding
    )


def _units(n: int) -> str:
    return "1 byte was" if n == 1 else f"{n:,} bytes were"
