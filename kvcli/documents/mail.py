"""Mail (.eml) and saved web pages (.mht): the head, and the text that a mail program shows; attachments are counted."""

import binascii
import email
import email.policy
import quopri
import re
from collections import Counter
from contextlib import suppress
from email.message import EmailMessage, MIMEPart
from typing import Any

from kvcli.documents import html
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import TextBlock, Writer, clean, left_out, parts
from kvcli.documents.text import decode
from kvcli.errors import InputError

FORM = 4_000
"""Characters of a line of the head that says what form a part has."""

_WORD = re.compile(r"=\?([\w.:-]{1,40})(?:\*\w*)?\?([bBqQ])\?([^?\s]*)\?=")
_HEAD = ("From", "To", "Cc", "Date", "Subject")


def extract(source: Source) -> Extract:
    """The text of one message. Raises ``InputError`` for a file that is none."""
    try:
        message = email.message_from_bytes(source.data, policy=_Bounded())
    except RecursionError:
        raise InputError(f"{source.name} is nested too deeply to be read", "save its innermost message alone") from None
    assert isinstance(message, EmailMessage)
    if not message.keys():
        raise InputError(
            f"{source.name} is not a mail: it has no header", f"read it as text: cat {source.quoted} | kvcli ask"
        )
    writer = Writer()
    for name in _HEAD:
        if value := _header(message, name):
            writer.blocks.append(TextBlock(f"{name}: {value}"))
    body = message.get_body(("plain", "html"))
    warnings: list[str] = []
    if body is not None:
        text, warnings = _decoded(body, source)
        if body.get_content_subtype() == "html":
            writer.apart = True
            html.write(writer, text)
        else:
            paragraphs = clean(text.replace("\r\n", "\n")).strip("\n")
            writer.blocks.append(TextBlock(paragraphs, apart=True))
    left: Counter[str] = Counter(writer.left)
    left["attachment"] += sum(1 for _ in message.iter_attachments()) if message.is_multipart() else 0
    return Extract(parts(writer.blocks), warnings=warnings, notes=left_out(left, source.name))


class _Bounded(email.policy.EmailPolicy):
    """The library takes a square of the time to parse a long head; what it parses is the form of a part."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return super().header_fetch_parse(name, value[:FORM])


def _header(message: EmailMessage, name: str) -> str:
    """A line of the head, encoded words decoded."""
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")
    raw = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    found: list[str] = []
    at, charset, data = 0, "", bytearray()  # words that are beside each other may share a character
    for word in _WORD.finditer(raw):
        between = raw[at : word.start()]
        if between.strip() or word[1].lower() != charset:
            found += [_text(data, charset), between if between.strip() or not at else ""]
            data = bytearray()
        at, charset = word.end(), word[1].lower()
        data += _bytes(word[2].lower(), word[3])
    found += [_text(data, charset), raw[at:]]
    return " ".join("".join(found).split())


def _bytes(kind: str, word: str) -> bytes:
    if kind == "q":
        return quopri.decodestring(word.encode(), header=True)
    with suppress(ValueError):
        return binascii.a2b_base64(word.encode() + b"==")
    return word.encode()


def _text(data: bytearray, charset: str) -> str:
    try:
        return data.decode(charset or "utf-8", "replace")
    except LookupError:
        return data.decode("utf-8", "replace")


def _decoded(part: MIMEPart, source: Source) -> tuple[str, list[str]]:
    """The text of a part: by the charset it names, else as the text of a file."""
    data = part.get_payload(decode=True)
    assert isinstance(data, bytes)
    charset = part.get_content_charset()
    try:
        if charset and charset not in ("us-ascii", "unknown-8bit"):
            return data.decode(charset), []
    except (LookupError, ValueError):  # of a name that is no charset, or of bytes that are not in it
        pass
    return decode(data, source.name, source.quoted) if data.strip() else ("", [])
