"""Damage of a PDF that PDFium passes over in silence, told from the bytes of the file."""

import contextlib
import re
import zlib

INFLATED = 1 << 30
"""Bytes all streams of text together may unpack to while they are checked."""

TABLES = 10_000
"""Tables of objects, one for each time that a file was saved anew."""

_PRINTABLE = bytes([9, 10, 13, *range(32, 127)])
_LEAF = re.compile(rb"(\d{1,9})\s+\d{1,5}\s+obj\b|/Type\s*/Page(?![A-Za-z])")
_TREE = re.compile(rb"<<(?:[^<>]|<<[^<>]*>>){0,2000}?/Type\s*/Pages\b(?:[^<>]|<<[^<>]*>>){0,2000}>>")
_COUNT = re.compile(rb"/Count\s+(\d{1,9})")
_FLATE = re.compile(rb"<<((?:[^<>]|<<[^<>]*>>|<[0-9a-fA-F\s]*>){0,2000})>>\s*stream\r?\n")
_START = re.compile(rb"startxref\s+(\d{1,12})\s*(?:%%EOF|\Z)")
_TABLE = re.compile(rb"\s*(?:xref\b|\d+\s+\d+\s+obj\b)")
_BEGIN, _XREF, _BEFORE = (
    re.compile(rb"startxref\s+(\d{1,12})"),
    re.compile(rb"\s*xref\s+"),
    re.compile(rb"/Prev\s+(\d{1,12})"),
)
_SECTION = re.compile(rb"(\d{1,9}) \d{1,9}[ \t]*[\r\n]+(?=\d{10} \d{5} [nf])")
_ENTRY = re.compile(rb"(\d{10}) (\d{5}) ([nf])[ \r\n]{1,3}")


def ends(data: bytes) -> bool:
    """Whether the end of the file is there: its mark, or a number that leads to the table of its objects."""
    if b"%%EOF" in data:
        return True
    found = _START.search(data, max(0, len(data) - 1024))
    return bool(found and _TABLE.match(data, int(found[1])))


def streams(data: bytes) -> tuple[int, int]:
    """How many compressed streams that may hold text do not unpack, and how many unpack but have a wrong check sum.

    PDFium would leave the first out in silence. It shows the second; they are damaged too if they are no plain text.
    """
    broken = unsure = at = 0
    room = INFLATED
    while match := _FLATE.search(data, at):
        at = match.end()
        words = match[1]
        if not re.search(rb"/Filter\s*\[?\s*/FlateDecode", words) or re.search(
            rb"/Image|/Length[123]\b|/Alternate", words
        ):
            continue
        end = data.find(b"endstream", at)
        packed = data[at : end if end >= 0 else len(data)]
        at = end if end >= 0 else len(data)
        engine, rest = zlib.decompressobj(), packed
        try:
            while rest and not engine.eof and room > 0:
                room -= len(engine.decompress(rest, 1 << 20))
                rest = engine.unconsumed_tail
            broken += room > 0 and not engine.eof
        except zlib.error as error:
            if "data check" in str(error) and _readable(packed):
                unsure += 1
            else:
                broken += 1
    return broken, unsure


def lost(data: bytes) -> int:
    """How many objects are not where the tables of objects say; PDFium takes what is there for others in silence."""
    missing, first, seen = 0, max(0, data.find(b"%PDF-", 0, 1024)), set[int]()
    found = _BEGIN.match(data, max(0, data.rfind(b"startxref")))
    while found and (place := int(found[1])) not in seen and len(seen) < TABLES:
        seen.add(place)
        head = _XREF.match(data, place) or _XREF.match(data, place + first)
        if head is None:
            break  # a compressed one
        at = head.end()
        while section := _SECTION.match(data, at):
            number, at = int(section[1]), section.end()
            while entry := _ENTRY.match(data, at):
                there, number, at = int(entry[1]), number + 1, entry.end()
                mark = re.compile(rb"\s{0,8}%d\s+%d\s+obj\b" % (number - 1, int(entry[2])))
                used = entry[3] == b"n" and there > 0
                missing += used and not any(mark.match(data, there + add) for add in {0, first})
        found = _BEFORE.search(data, at, data.find(b"startxref", at))
    return missing


def _readable(packed: bytes) -> bool:
    """Whether the beginning of a compressed stream is operators and text, without regard to its check sum."""
    with contextlib.suppress(zlib.error):
        found = zlib.decompressobj(-15).decompress(packed[2:], 1 << 20)
        return len(found.translate(None, _PRINTABLE)) <= 0.01 * len(found)
    return False


def leaves(data: bytes) -> int:
    """How many pages a file means to have: by its page objects or its page tree, whichever says more.

    Compressed streams of objects are not looked into.
    """
    found, at = set[bytes](), b""
    for match in _LEAF.finditer(data):
        at = match[1] or at
        if not match[1]:
            found.add(at)
    return max([len(found), *(int(n[1]) for tree in _TREE.finditer(data) for n in _COUNT.finditer(tree[0]))])
