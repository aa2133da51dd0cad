"""Mail (.eml) and saved web pages (.mht): the head, and the text that a mail program shows; attachments are counted."""

import email
import email.policy
from collections import Counter
from email.message import EmailMessage, MIMEPart

from kvcli.documents import html
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import TextBlock, Writer, clean, left_out, parts
from kvcli.documents.text import decode
from kvcli.errors import InputError

_HEAD = ("From", "To", "Cc", "Date", "Subject")


def extract(source: Source) -> Extract:
    """The text of one message. Raises ``InputError`` for a file that is none."""
    message = email.message_from_bytes(source.data, policy=email.policy.default)
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


def _header(message: EmailMessage, name: str) -> str:
    try:
        return " ".join(str(message[name] or "").split())
    except (ValueError, IndexError, AttributeError, TypeError):  # a head that the library's parser breaks on
        raw = {key.lower(): value for key, value in message.raw_items()}
        return " ".join(str(raw.get(name.lower(), "")).split())


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
