"""Calibration for InfiniGen: second moments of a model's queries over some text (offline skewing).

Per layer and query head. The eigenvectors of the moment are the right singular vectors of the queries, so the file's
size does not depend on the text's length.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvcli.engine.prefill import prefill_steps
from kvcli.errors import DamagedError, ModelError
from kvcli.events import Prefill
from kvcli.models.heads_on_disk import folder
from kvcli.recipe import Recipe, parse
from kvcli.retaining_heads import checkpoint
from kvcli.storage.infinigen import QUERIES
from kvcli.types import CHUNK

if TYPE_CHECKING:
    from kvcli.models.model import Model

FORMAT = "1"
SUFFIX = ".skew"


@dataclass(frozen=True)
class CalibrationCard:
    """The origin of a calibration, stored in its file.

    Attributes:
        model, identity: as for :class:`kvcli.retaining_heads.checkpoint.HeadsCard`.
        layers, heads, head_dim: sizes of the model.
        tokens: length of the text.
        data: per text, its name and sha256.
        made: date, and version of kvcli.
    """

    model: str
    identity: str
    layers: int
    heads: int
    head_dim: int
    tokens: int
    data: list[dict[str, str]]
    made: str


def path(model: Model) -> Path:
    """Return the standard path of a model's calibration."""
    return folder() / (model.name.replace("/", "--") + SUFFIX)


def measure(model: Model, ids: Sequence[int], *, chunk: int = CHUNK) -> Generator[Prefill, None, dict[int, Tensor]]:
    """Measure the second moments of full-attention layers: float32 ``[H, D, D]`` by layer index.

    Raises:
        InputError: no ids.
    """
    work = yield from prefill_steps(model, ids, parse("full+infinigen(dense=0, skew=text)"), chunk=chunk)
    return {layer.index: layer.state[QUERIES] / len(ids) for layer in work.layers if QUERIES in layer.state}


def save(where: Path, moments: dict[int, Tensor], card: CalibrationCard) -> None:
    """Write a calibration atomically. Raises ``ResourceError``."""
    tensors = {f"layers.{i}.queries": moment.cpu().contiguous() for i, moment in moments.items()}
    checkpoint.write(where, tensors, {"kvcli_skew": FORMAT, "card": json.dumps(asdict(card))})


def load(where: Path) -> tuple[dict[int, Tensor], CalibrationCard]:
    """Read a calibration. Raises ``DamagedError`` if the file is not one."""
    try:
        with safe_open(where, "pt") as stored:
            metadata: dict[str, Any] = stored.metadata() or {}
            if metadata.get("kvcli_skew") != FORMAT:
                raise ValueError(f"format {metadata.get('kvcli_skew', 'unknown')}, and this kvcli reads {FORMAT}")
            known = {f.name for f in fields(CalibrationCard)}
            card = CalibrationCard(**{k: v for k, v in json.loads(metadata["card"]).items() if k in known})
            moments = {int(key.split(".")[1]): stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DamagedError(f"{where} is not a calibration: {error}", "kvcli calibrate FILE…") from error
    shape = (card.heads, card.head_dim, card.head_dim)
    if any(tuple(m.shape) != shape or not bool(m.isfinite().all()) for m in moments.values()):
        raise DamagedError(f"{where}: its moments are not {shape}, or not finite", "kvcli calibrate FILE…")
    return moments, card


def attach(model: Model, recipes: Iterable[Recipe]) -> str | None:
    """Give a model its calibration if a recipe uses one.

    Returns:
        a note for the user; ``None`` if no recipe uses a calibration.

    Raises:
        ModelError: a recipe needs a calibration and there is none, or it belongs to another model; names what differs.
        DamagedError: the file is not a calibration.
    """
    asked = {recipe.storage.calibrated for recipe in recipes} - {"never"}
    if not asked:
        return None
    where, spec = _search(model), model.spec
    again = f"kvcli calibrate -m {model.name} FILE…"
    if where is None:
        if "must" in asked:
            raise ModelError(f"skew=file needs a calibration, and none exists for {model.name}", again)
        return f"no calibration of {model.name}; its queries are not rotated ({again})"
    moments, card = load(where)
    have = {"layers": card.layers, "heads": card.heads, "head dimensions": card.head_dim}
    want = {"layers": spec.layers, "heads": spec.heads, "head dimensions": spec.head_dim}
    differ = [f"{have[k]:,} {k} where the model has {want[k]:,}" for k in want if have[k] != want[k]]
    if not differ and card.identity != checkpoint.identity(model):
        differ = [f"made for {card.model} ({card.identity}), and this is {model.name} ({checkpoint.identity(model)})"]
    if differ:
        raise ModelError(f"the calibration {where} does not fit {model.name}: {'; '.join(differ)}", again)
    model.calibration = {i: moment.to(spec.device_of(i, model.device), torch.float32) for i, moment in moments.items()}
    names = ", ".join(entry["name"] for entry in card.data)
    return f"calibrated on {names}, {card.tokens:,} tokens, {card.made}"


def _search(model: Model) -> Path | None:
    """Find the file of the model's name, whatever its contents; else one of the same model under another name."""
    if path(model).exists():
        return path(model)
    wanted = checkpoint.identity(model)
    for other in sorted(folder().glob(f"*{SUFFIX}")):
        try:
            if load(other)[1].identity == wanted:
                return other
        except DamagedError:
            continue
    return None
