"""The encoding of an HTML file: its mark, what it declares, and what the declared name means on the web."""

import re

_DECLARED = re.compile(
    rb"""<(?:meta\s[^>]{0,300}?charset|\?xml\s[^>]{0,200}?encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE
)
_STANDARD = {  # what the names mean on the web (encoding.spec.whatwg.org), where Python means less
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin-1", "latin1", "us-ascii", "ascii"), "cp1252"),
    **dict.fromkeys(("iso-8859-9", "latin5"), "cp1254"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "ms_kanji", "windows-31j"), "cp932"),
    **dict.fromkeys(("gb2312", "gb_2312-80", "gbk", "x-gbk"), "gb18030"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean"), "cp949"),
    **dict.fromkeys(("big5", "x-x-big5", "cn-big5"), "big5hkscs"),
    **dict.fromkeys(("tis-620", "iso-8859-11"), "cp874"),
    "iso-8859-8-i": "iso8859_8",
    "x-cp1252": "cp1252",
    "x-cp1251": "cp1251",
}
_WIDE = frozenset(["cp932", "gb18030", "cp949", "big5hkscs", "euc-jp"])
FEW = 4
"""So few characters may be UTF-8 by accident in a text that names an encoding of two bytes a character."""


def decode(data: bytes, name: str) -> tuple[str, list[str]]:
    """HTML as characters: by its mark, as UTF-8 if it is valid, by its own declaration, or else as any text."""
    from kvcli.documents.text import decode as guess

    declared = _DECLARED.search(data[:4096])
    if not declared or data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")) or data.isascii():
        return guess(data, name, name)
    encoding = declared[1].decode("ascii").lower()
    encoding = _STANDARD.get(encoding, encoding)
    if encoding.startswith(("utf-16", "utf-32", "utf16", "ucs")):
        return guess(data, name, name)  # its declaration could be read byte by byte
    try:
        found = data.decode("utf-8")
        if encoding not in _WIDE or sum(c > "\x7f" for c in found) >= FEW:
            return found, []
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode(encoding, "replace")
    except (LookupError, ValueError):
        return guess(data, name, name)
    wrong = text.count("\ufffd")
    if not wrong:
        return text, []
    if wrong > 0.01 * len(text) or encoding.startswith("utf"):
        return guess(data, name, name)
    return text, [f"{name}: {wrong:,} bytes were not valid {encoding}, which it declares, and became U+FFFD"]
