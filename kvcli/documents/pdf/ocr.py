"""OCR with RapidOCR, in a process of its own; its models come with its package, so that nothing is fetched.

The process gets a PDF and page numbers, or a picture, and writes lines of text with their places, as
:mod:`kvcli.documents.pdf.pdfium` does for words.
"""

import json
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from kvcli.documents.document import Source
from kvcli.documents.isolated import bounded, run
from kvcli.documents.pdf import layout, paragraphs
from kvcli.documents.pdf.words import Word
from kvcli.errors import UsageError

DPI = 150
"""Dots per inch at which pages are drawn; letters of 8 points are then 17 dots high."""

PIXELS = 12_000_000
"""Of one page; a larger one is drawn smaller."""

FRAMES = 1_000
"""Pages of one TIFF file."""

SURE = 0.6
"""Lines that the model is less sure of are left out: they are more often a texture than a text."""

TIMEOUT_S = 900.0
"""Seconds one page may take, by the clock and of processor time."""

MEMORY = 8 << 30
"""Bytes of address space that the process may take."""


def pages(source: Source, numbers: Sequence[int]) -> dict[int, str]:
    """The text on pages of a PDF; on every frame of a picture if ``numbers`` is empty, counted from 1.

    Raises ``UsageError`` if RapidOCR is not installed and ``InputError`` if a page takes too long.
    """
    if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
        raise UsageError("OCR is not installed", "pip install 'kvcli[ocr]'")
    read = {
        page["page"]: layout.lines([Word(*w) for w in page["words"]])
        for page in run("kvcli.documents.pdf.ocr", source, *map(str, numbers), silence=TIMEOUT_S)
    }
    hyphens = paragraphs.Hyphens(line.text for lines in read.values() for line in lines)
    return {n: paragraphs.finish(paragraphs.flow(read.get(n, []), hyphens)) for n in numbers or sorted(read)}


def main() -> None:
    """Read a file from standard input and page numbers from the arguments; write one JSON object per page."""
    import numpy as np

    bounded(int(TIMEOUT_S), MEMORY)
    data = sys.stdin.buffer.read()
    numbers = [int(a) for a in sys.argv[1:]]
    engine = _engine()
    for number, picture, scale in _drawn(data, numbers) if numbers else _frames(data):
        found = engine(np.ascontiguousarray(picture))
        words = []
        for box, text, score in zip(
            found.boxes if found.boxes is not None else (), found.txts or (), found.scores or (), strict=True
        ):
            if score >= SURE and text.strip():
                xs, ys = [float(p[0]) / scale for p in box], [float(p[1]) / scale for p in box]
                words.append((text.strip(), min(xs), min(ys), max(xs), max(ys), 0))
        sys.stdout.write(json.dumps({"page": number, "words": words}) + "\n")
        sys.stdout.flush()
        bounded(int(TIMEOUT_S), MEMORY)


def _engine() -> Any:
    from rapidocr import RapidOCR

    # ONNX's threads spin while they wait for each other: on two busy cores one page took 350 s with them.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return RapidOCR(
        params={
            "Global.log_level": "critical",
            "Global.use_cls": False,
            "EngineConfig.onnxruntime.intra_op_num_threads": max(1, usable // 2),
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )


def _drawn(data: bytes, numbers: Sequence[int]) -> Iterator[tuple[int, Any, float]]:
    """Pages of a PDF as pictures, with their dots per point."""
    import pypdfium2 as pdfium

    document = pdfium.PdfDocument(data)
    for number in numbers:
        page = document[number - 1]
        width, height = page.get_size()
        scale = min(DPI / 72, (PIXELS / max(1.0, width * height)) ** 0.5)
        yield number, page.render(scale=scale).to_numpy(), scale
        page.close()


def _frames(data: bytes) -> Generator[tuple[int, Any, float], None, None]:
    """The frames of a picture, made smaller if they are huge."""
    from io import BytesIO

    import numpy as np
    from PIL import Image, ImageSequence

    with Image.open(BytesIO(data)) as picture:
        for number, frame in enumerate(ImageSequence.Iterator(picture), 1):
            if number > FRAMES:
                return
            scale = min(1.0, (PIXELS / max(1, frame.width * frame.height)) ** 0.5)
            size = (max(1, int(frame.width * scale)), max(1, int(frame.height * scale)))
            yield number, np.asarray(frame.convert("RGB").resize(size)), scale


if __name__ == "__main__":
    main()
