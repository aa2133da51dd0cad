"""Pictures that a model with a vision tower reads: image files, and pages of a PDF drawn by PDFium."""

from __future__ import annotations

import hashlib
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from kvcli.documents.document import Document, Picture, Source
from kvcli.documents.formats import PDF, kind
from kvcli.documents.pages import Ranges
from kvcli.documents.reader import load_file
from kvcli.errors import InputError, UsageError

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What Pillow may open; of a file with several pictures, the first is read."""

PIXELS = 100_000_000
"""Of one picture."""


def read(files: Sequence[str], images: Sequence[str], pages: Ranges, load_text: Callable[[], Document]) -> Document:
    """A document with pictures, which are read before its text.

    Args:
        files: documents; none for pictures alone.
        images: image files, in order.
        pages: numbers of pages of the PDFs among ``files`` that become pictures, after the image files.
        load_text: reads ``files``. If there is one, it may be a scan without text, which is a warning then.

    Raises:
        UsageError: Pillow is not installed, no file is a PDF, or a page does not exist.
        InputError: a picture is missing, damaged or too large, or a page cannot be drawn.
    """
    found = [load(name) for name in images]
    problem: InputError | None = None
    try:
        document = load_text() if files else Document("", (), "", 0)
    except InputError as error:
        if not pages or len(files) != 1 or not Path(files[0]).is_file():
            raise
        problem = error
        document = Document("", tuple(files), hashlib.sha256(load_file(files[0])).hexdigest(), 0, (error.message,))
    if pages:
        from kvcli.documents.pdf import picture

        sources = [Source(load_file(name), name, shlex.quote(name)) for name in files if Path(name).is_file()]
        pdfs = [source for source in sources if kind(source.data, ".pdf") is PDF]
        if not pdfs:
            text = "--pages-as-images draws pages of a PDF, and none was named"
            raise problem or UsageError(text, "kvcli ask FILE.pdf …")
        for source in pdfs:
            drawn = picture.pages(source, pages)
            if not drawn and problem:
                raise problem
            found += [replace(_picture(source.name, png), page=number) for number, png in drawn]
    if not files:
        digest = hashlib.sha256(b"".join(p.data for p in found)).hexdigest()
        document = Document("", tuple(p.name for p in found), digest, sum(len(p.data) for p in found))
    return replace(document, pictures=tuple(found))


def load(name: str) -> Picture:
    """A picture of a file, checked to its last pixel. Raises as :func:`read`."""
    return _picture(name, load_file(name))


def decode(data: bytes) -> Any:
    """A picture's pixels: upright, in RGB, with white for what is transparent. Raises what Pillow raises."""
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(_open(data))
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _open(data: bytes) -> Any:
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of many pixels, which are refused, and of what is odd in a file
        return Image.open(BytesIO(data), formats=FORMATS)


def _picture(name: str, data: bytes) -> Picture:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise UsageError("pictures need Pillow, which is not installed", "pip install 'kvcli[images]'") from None
    small = f"magick {shlex.quote(name)} -resize 4000x4000 small.png"
    try:
        opened = _open(data)
        size: tuple[int, int] | None = opened.size
        if opened.width * opened.height <= PIXELS:
            size, (width, height) = None, decode(data).size
    except UnidentifiedImageError:
        hint = "--pages-as-images 1" if data.startswith(b"%PDF") else f"file {shlex.quote(name)}"
        raise InputError(f"{name} is not a picture of a kind that kvcli reads ({', '.join(FORMATS)})", hint) from None
    except Image.DecompressionBombError:
        raise InputError(f"{name} has more than {PIXELS:,} pixels, the most that kvcli reads", small) from None
    except MemoryError:
        raise
    except Exception as error:  # each format's decoder fails in ways of its own
        why = " ".join(str(error).split())[:100]
        raise InputError(f"{name} is damaged: it cannot be opened as a picture ({why})", "fetch it again") from None
    if size is not None:
        raise InputError(
            f"{name} has {size[0]:,} × {size[1]:,} pixels, and kvcli reads pictures of up to {PIXELS:,}", small
        )
    return Picture(name, hashlib.sha256(data).hexdigest(), width, height, data=data)
