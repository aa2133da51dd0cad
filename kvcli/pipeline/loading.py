"""From a name to a loaded model with its retaining heads, and from files to a document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kvcli import documents
from kvcli.documents import Document
from kvcli.documents import pages as page_ranges
from kvcli.events import Event, drain
from kvcli.models.load import load
from kvcli.models.resolve import resolve
from kvcli.models.weights import ModelSource
from kvcli.retaining_heads.discovery import attach

if TYPE_CHECKING:
    from kvcli.models.model import Model


def load_model(
    name: str | ModelSource | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    weights: str = "bf16",
    heads: str | None = None,
    find_heads: bool = True,
    pictures: bool = False,
    offline: bool = False,
    on_event: Callable[[Event], None] | None = None,
    on_ready: Callable[[], None] = lambda: None,
    on_notice: Callable[[str], None] = lambda _text: None,
) -> Model:
    """Load a language model and its retaining heads.

    Args:
        name: an alias (``smollm2-135m``), a directory, a GGUF file, a hub repository, or a resolved source; the
            embedded default model if ``None``.
        device: ``cpu``, ``cuda`` or ``cuda:N``; the first GPU if there is one.
        dtype: ``bfloat16``, ``float16`` or ``float32``; bfloat16 if the device multiplies it natively.
        weights: how the layers' matrices are stored: ``bf16`` (as they are), ``int8`` or ``nf4``.
        heads: a file or hub repository of retaining heads; by default those found for this model.
        pictures: load the vision tower too, so that documents may have pictures.
        find_heads: look for retaining heads even if ``heads`` names none.
        offline: use no network.
        on_event: receives :class:`~kvcli.events.Download` and :class:`~kvcli.events.Convert` events.
        on_ready: called when all code is loaded and no weights are.
        on_notice: receives one line if the model does not fit the device as it is.

    Raises:
        ModelError: the model is unknown, damaged or not supported, reads no pictures, or the heads belong to another
            model.
        ResourceError: the weights do not fit the memory.
    """
    source = name if isinstance(name, ModelSource) else drain(resolve(name, offline=offline), on_event)
    model = load(
        source,
        device=device,
        dtype=dtype,
        weights=weights,
        pictures=pictures,
        ready=on_ready,
        announce=on_notice,
    )
    if heads is not None or find_heads:
        attach(model, heads, offline=offline, watch=on_event)
    return model


def read_document(
    *paths: str | Path,
    pages: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    ocr: bool = False,
    images: Sequence[str | Path] = (),
    pages_as_images: str | None = None,
) -> Document:
    """Extract the text of files and directories, in order.

    Args:
        paths: PDF, EPUB, office, HTML, mail, notebook, text or source files, or directories.
        pages: page numbers to read, from 1: ``1-40,55``.
        include, exclude: glob patterns for the files of a directory.
        ocr: recognise the text of scanned pages and images.
        images: image files that the model reads before the text, if it has a vision tower; without ``paths`` alone.
        pages_as_images: page numbers of PDFs among ``paths`` that it sees as pictures: ``3,7``.

    Raises:
        InputError: a file is missing, encrypted, unsupported or has no text.
        UsageError: pictures, without Pillow.
    """
    ranges = () if pages is None else page_ranges.parse(pages)
    options = documents.Options(ranges, tuple(include), tuple(exclude), ocr)
    names, shown = [str(path) for path in paths], page_ranges.parse(pages_as_images) if pages_as_images else ()
    if not (images or shown):
        return documents.read(names, None, options)
    from kvcli.documents import pictures

    return pictures.read(names, [str(path) for path in images], shown, lambda: documents.read(names, None, options))
