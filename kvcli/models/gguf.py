"""A GGUF file, dequantised once and kept as bf16 safetensors.

The conversion runs in a process of its own (:mod:`kvcli.models.gguf_conversion`). There, transformers cannot draw bars
or log to the screen. If the process takes too much memory, only it is killed. It prints one ``done total`` pair a line.
"""

import hashlib
import json
from collections.abc import Generator
from pathlib import Path

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Convert
from kvcli.models.gguf_header import GgufHeader, check_extent, read_header
from kvcli.utils import child_process, files

__all__ = ["GgufHeader", "bits", "content_key", "convert", "read_header"]

EXIT_DISK, EXIT_UNKNOWN = 5, 4

REVISIONS = {"deepseek2": 2}
"""By architecture, how often its conversion changed since :data:`kvcli.models.resolve.CONVERTER` did: older copies are
not used. 2: queries of Mistral Large 3 are scaled by their position."""


def bits(path: Path) -> int:
    """Bits per weight in a model, from the size of its files."""
    header = read_header(path)
    return round(8 * sum(file.stat().st_size for file in header.files) / max(1, header.parameters))


def content_key(path: Path) -> str:
    """The sha256 of the file, or of those of all parts and of the revision; all is read once and remembered."""
    header = read_header(path)
    found = [files.sha256(file) for file in header.files]
    if revision := REVISIONS.get(header.architecture):
        found.append(str(revision))
    return found[0] if len(found) == 1 else hashlib.sha256("".join(found).encode()).hexdigest()


def convert(source: Path, target: Path, name: str) -> Generator[Convert, None, list[str]]:
    """Dequantise ``source`` into the directory ``target``; return notes for the user.

    ``target`` must be a temporary name: what an interrupted conversion leaves in it is not a model.
    """
    header = read_header(source)
    check_extent(header)
    total = header.tensors
    yield Convert(name, 0, total)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    log = target.parent / f"{target.name}.log"
    command = child_process.own_module("kvcli.models.gguf_conversion", str(source.absolute()), str(target.absolute()))
    offline = {"HF_HUB_OFFLINE": "1"}
    with (
        log.open("wb") as errors,
        child_process.running(command, stderr=errors, environment=offline, text=True) as child,
    ):
        assert child.stdout is not None
        for line in child.stdout:
            done, _, of = line.partition(" ")
            if done.isdecimal() and of.strip().isdecimal():
                yield Convert(name, min(int(done), int(of)), int(of))
        status = child.wait()
    last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
    log.unlink()
    if status == EXIT_DISK:
        raise ResourceError(f"the disk is full: {source.name} could not be converted into {target.parent}")
    if status == EXIT_UNKNOWN:
        raise ModelError(f"{source} cannot be converted: {last[0]}", "name the model's safetensors instead")
    if status < 0:
        raise ResourceError(f"converting {source.name} was killed by signal {-status}: not enough memory?")
    if status:
        raise ModelError(f"damaged or unsupported GGUF file: {source} ({last[0]})")
    yield Convert(name, total, total)
    notes: list[str] = json.loads((target / "notes.json").read_text())
    (target / "notes.json").unlink()
    return notes
