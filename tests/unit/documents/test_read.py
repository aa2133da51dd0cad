"""Bytes of all kinds become one whole text, or one clear error."""

from __future__ import annotations

import hashlib
import io
import os
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcli.documents import Document, Span, read
from kvcli.documents.text import decode
from kvcli.errors import InputError

TEXT = "Call me Ishmael. Größe, naïve, Ω, 鯨, 🐋.\nSome years ago…\n"


def write(path: Path, data: bytes | str) -> str:
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [
        ("utf-8", b""),
        ("utf-8", b"\xef\xbb\xbf"),
        ("utf-16-le", b"\xff\xfe"),
        ("utf-16-be", b"\xfe\xff"),
        ("utf-32-le", b"\xff\xfe\x00\x00"),
        ("utf-32-be", b"\x00\x00\xfe\xff"),
    ],
)
def test_unicode_with_its_mark(tmp_path: Path, encoding: str, mark: bytes) -> None:
    data = mark + TEXT.encode(encoding)
    document = read([write(tmp_path / "moby.txt", data)])
    name, digest = str(tmp_path / "moby.txt"), hashlib.sha256(data).hexdigest()
    assert document == Document(TEXT, (name,), digest, len(data), spans=(Span(0, len(TEXT), 0, name),))


def test_line_ends_become_newlines(tmp_path: Path) -> None:
    assert read([write(tmp_path / "a.txt", b"a\r\nb\rc\n")]).text == "a\nb\nc\n"


def test_one_file_stays_as_it_is_and_several_get_headers(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.md", "# A\n"), write(tmp_path / "b.py", "x = 1\n")
    assert read([a]).text == "# A\n"
    both = read([b, a])
    assert both.text == f"x = 1\n\n=== {a} ===\n\n# A"
    assert both.files == (b, a)
    assert both.sha256 == hashlib.sha256(b"x = 1\n# A\n").hexdigest()
    assert both.bytes == 10


def test_standard_input_alone_and_among_files(tmp_path: Path) -> None:
    a = write(tmp_path / "a.txt", "one")
    assert read([], b"two").files == ("stdin",)
    assert read([a, "-"], b"two").text == "one\n\n=== stdin ===\n\ntwo"
    with pytest.raises(InputError, match="twice"):
        read(["-", "-"], b"two")


def test_a_pipe_is_a_file() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    try:
        assert read([f"/dev/fd/{reader}"]).text == "from a pipe"
    finally:
        os.close(reader)


# --- damage ---


def test_windows_1252_among_utf8_is_read_and_counted() -> None:
    data = "Größe ".encode() * 40 + "Straße “quoted” 5 €".encode("cp1252")
    text, (warning,) = decode(data, "a.txt", "a.txt")
    assert text == "Größe " * 40 + "Straße “quoted” 5 €"
    assert warning == "a.txt: 4 bytes were not UTF-8 and read as Windows-1252"


def test_a_byte_that_windows_1252_does_not_have() -> None:
    text, warnings = decode(b"plain text \x81 goes on", "a", "a")
    assert text == "plain text \ufffd goes on"
    assert len(warnings) == 1


def test_a_character_cut_off_at_the_end() -> None:
    text, (warning,) = decode("the whale 🐋".encode()[:-1], "a", "a")
    assert text == "the whale \ufffd"
    assert "3 bytes were left" in warning or "cut off" in warning


def test_half_a_character_of_utf16() -> None:
    text, (warning,) = decode(b"\xff\xfe" + "whale".encode("utf-16-le") + b"\x3d", "a", "a")
    assert text == "whale\ufffd"
    assert "UTF-16" in warning


@given(st.text())
def test_whatever_is_utf8_is_read_as_it_is(text: str) -> None:
    data = text.encode()
    try:
        decoded, warnings = decode(data, "a", "a")
    except InputError:
        return  # NUL or too many control characters
    if re.search("[\x00-\x06\x0e\x0f\x1b]", text):
        return  # it may be UTF-16 or ISO 2022
    assert not warnings
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    assert decoded == lines.replace("\n\ufeff", "\n")


@settings(deadline=None)  # telling an encoding takes its time
@given(st.binary(max_size=200))
def test_any_bytes_are_text_or_an_input_error(data: bytes) -> None:
    try:
        text, _ = decode(data, "a", "a")
    except InputError:
        pass
    else:
        text.encode()  # no lone surrogates: a tokenizer would choke on them


# --- what is refused ---


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


REFUSED = {
    "empty": ("a.txt", b"", "is empty: 0 bytes", "ls -l"),
    "white space": ("a.txt", b" \n\t\x0c\n", "white space", "OCR"),
    "only a mark": ("a.txt", b"\xef\xbb\xbf", "white space", ""),
    "nul": ("a.txt", b"text\x00text", "binary", "tr -d"),
    "controls": ("a.txt", b"\x01\x02\x03\x04text", "binary", "file"),
    "pdf": ("a.pdf", b"%PDF-1.7\nx", "damaged", "fetch"),
    "pdf by another name": ("a.txt", b"%PDF-1.7\nx", "damaged", "fetch"),
    "empty rtf": ("a.rtf", b"{\\rtf1 }", "RTF without any text", "extract"),
    "html without text": ("a.html", b"<script>hello</script>", "HTML without any text", "extract"),
    "docx": ("a.docx", zipped("word/document.xml"), "damaged", "fetch"),
    "epub": ("a.epub", zipped("mimetype", "META-INF/container.xml"), "damaged", "fetch"),
    "encrypted docx": ("a.docx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted", "password"),
    "odt": ("a.odt", zipped("mimetype", "content.xml"), "damaged", "fetch"),
    "pptx": ("a.pptx", zipped("ppt/presentation.xml"), "damaged", "fetch"),
    "xlsx": ("a.xlsx", zipped("xl/workbook.xml"), "damaged", "fetch"),
    "text called pptx": ("a.pptx", b"404 not found", "damaged", "fetch"),
    "encrypted xlsx": ("a.xlsx", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "encrypted", "password"),
    "text called ipynb": ("a.ipynb", b"no JSON", "Jupyter notebook", "cat"),
    "text called eml": ("a.eml", b"\n\nno head", "mail", "cat"),
    "zip": ("a.zip", zipped("a.txt"), "ZIP", "unpack"),
    "damaged zip": ("a.docx", b"PK\x03\x04\x00\xff\xff", "its ZIP archive cannot be opened", "fetch"),
    "doc": ("a.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office 97", "soffice"),
    "png": ("a.png", b"\x89PNG\r\n\x1a\n\x00", "PNG", "--ocr"),
    "jpeg": ("a.jpg", b"\xff\xd8\xff\xe0", "JPEG", "--ocr"),
    "mp3": ("a.mp3", b"ID3\x03\x00\x00", "MP3", "whisper"),
    "gzip": ("a.txt.gz", b"\x1f\x8b\x08\x00", "gzip", "gunzip"),
    "gguf": ("a.gguf", b"GGUF\x03\x00", "GGUF", "-m"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(tmp_path: Path, case: str) -> None:
    name, data, message, hint = REFUSED[case]
    with pytest.raises(InputError) as caught:
        read([write(tmp_path / name, data)])
    assert message in caught.value.message
    assert name in caught.value.message
    assert hint in (caught.value.hint or "")
    assert caught.value.exit == 3


def test_text_that_begins_like_a_recording_is_text(tmp_path: Path) -> None:
    for start in ("ID3 tags are old.", "BZh is a magic.", "RIFF raff", "GIF89a, said the file."):
        assert read([write(tmp_path / "a.txt", start)]).text == start


def test_missing_names_the_nearest(tmp_path: Path) -> None:
    write(tmp_path / "Frankenstein.txt", "x")
    with pytest.raises(InputError, match=r"frankenstien\.txt does not exist") as caught:
        read([tmp_path / "frankenstien.txt"])
    assert str(tmp_path / "Frankenstein.txt") in (caught.value.hint or "")
    with pytest.raises(InputError) as caught:
        read([tmp_path / "no" / "such" / "a.txt"])
    assert caught.value.hint == f"ls {tmp_path}"


def test_directories_devices_and_names_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no text to read; it is empty"):
        read([tmp_path])
    with pytest.raises(InputError, match="is a device"):
        read(["/dev/zero"])
    with pytest.raises(InputError, match="cannot be read"):
        read(["x" * 5000])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    secret = Path(write(tmp_path / "secret.txt", "x"))
    secret.chmod(0)
    with pytest.raises(InputError, match="permission denied"):
        read([secret])


@pytest.mark.parametrize("words", ["Straße und Größe", "Café déjà vu", "Müller", "naïve façade"])
def test_a_few_letters_tell_no_exotic_encoding(tmp_path: Path, words: str) -> None:
    write(tmp_path / "a.txt", words.encode("cp1252"))
    assert read([tmp_path / "a.txt"]).text == words
