"""The self-test: a few random tokens through kvcli's cache and through the model's own attention must agree.

They run as a document and its answer do: in chunks, then a question, then single steps that compute one row of logits.
Each layer is compared too, with the reference's output as every layer's input, so that one layer's rounding does not
grow in the next. Widths and lengths that the configuration names (sliding windows, original context lengths) are made
so small for a second run that these tokens cross them. The result is remembered by fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from kvcli.cache.context import freeze
from kvcli.cache.decode_cache import DecodeCache
from kvcli.cache.prefill_cache import ChunkStep, PrefillCache
from kvcli.errors import ResourceError, UnsupportedModel
from kvcli.eviction.full import Full
from kvcli.models import trial
from kvcli.models.attention import LAYER
from kvcli.storage.dense import Dense
from kvcli.utils.files import cache_dir
from kvcli.utils.version import __version__

if TYPE_CHECKING:
    from kvcli.models.model import Model
    from kvcli.types import ModelSpec

TOKENS, CHUNK, QUESTION, STEPS = 64, 20, 12, 4

# Relative RMS of the logits. Correct implementations differ by rounding only; a missed rotation, window or factor
# gives about 1 with trained weights.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}

# Of narrow dtypes the layers decide: there a rounded number may send a token to other experts, which is no mistake.
_LOGITS = {"float32": TOLERANCE["float32"], "float16": 0.5, "bfloat16": 0.5}
_ROW = {"float32": 2e-3, "float16": 3e-2, "bfloat16": 0.15}  # relative error of one token in one layer
_ROWS = 0.05  # share of tokens of a layer that may be further away: those that rounding sends to other experts

_NARROW = 24
_NAMED = ("window", "attention_chunk_size", "original_max_position_embeddings")


@dataclass
class Difference:
    """How far kvcli is from the model's own attention.

    Attributes:
        logits: relative RMS.
        layers: by name, the share of tokens whose output differs by more than rounding.
    """

    logits: float
    layers: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The layer that differs in most tokens, and their share."""
        return max(self.layers.items(), key=lambda item: item[1], default=("", 0.0))


def precision(model: Model) -> str:
    """The dtype whose rounding a model's outputs may have; matrices of int8 round what they multiply too."""
    linear = (part.weight.dtype for part in model.module.modules() if isinstance(part, nn.Linear))
    return "bfloat16" if torch.int8 in linear else model.spec.dtype


def check(model: Model, *, remember: bool) -> None:
    """Run the self-test unless its result is known.

    Raises:
        UnsupportedModel: layers or logits differ; the message says which and by how much.
    """
    versions = f"{__version__} {transformers.__version__} {torch.__version__}"
    key = hashlib.sha256(f"2 {model.spec.fingerprint} {model.spec.dtype} {versions}".encode()).hexdigest()[:24]
    verdict = None
    with suppress(OSError, ResourceError):  # without a cache it runs every time
        verdict = cache_dir() / "probe" / key
        if remember and verdict.exists():
            return
    found = compare(model)
    _require(model, found, "")
    with narrowed(model) as spec:
        if spec is not None:
            _require(model, compare(model, spec), f" (with {', '.join(_NAMED[:1])}s of {_NARROW} tokens)")
    if remember and verdict is not None:
        with suppress(OSError):
            verdict.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            verdict.write_text(f"{model.name}: {found.logits:.2e}\n", encoding="utf-8", errors="backslashreplace")


def _require(model: Model, found: Difference, where: str) -> None:
    dtype, (name, share) = precision(model), found.worst
    about = f"{model.name} ({type(model.module).__name__}) is not supported: of {TOKENS} random tokens{where}, kvcli's"
    if share > _ROWS:
        raise UnsupportedModel(
            f"{about} output of {name} differs from the model's own by more than {_ROW[dtype]:.0e} for {share:.0%}"
            f" (at most {_ROWS:.0%} may), and its logits by {found.logits:.1e}"
        )
    if not found.logits <= _LOGITS[dtype]:
        raise UnsupportedModel(
            f"{about} logits differ from the model's own by {found.logits:.1e} (relative RMS; at most"
            f" {_LOGITS[dtype]:.0e} is allowed for {dtype})"
        )


@torch.inference_mode()
def compare(model: Model, spec: ModelSpec | None = None) -> Difference:
    """Compare logits and layers.

    Args:
        model: a loaded model.
        spec: its facts with other windows, if these were narrowed.
    """
    ids = trial.ids(model.module, TOKENS)[0].to(model.device)
    watch = _Watch(model)
    with model.reference() as module, watch.recording():
        expected = module(input_ids=ids[None], use_cache=False).logits[0, -QUESTION:].float()
    got = through_store(model, ids, spec)
    found = Difference(float((got - expected).norm() / expected.norm()))
    with watch.comparing(found.layers, _ROW[precision(model)]):
        through_store(model, ids, spec)
    return found


@torch.inference_mode()
def through_store(model: Model, ids: Tensor, spec: ModelSpec | None = None) -> Tensor:
    """Logits ``[QUESTION, vocab]`` of the last tokens, after a chunked prefill of all tokens before them."""
    body = len(ids) - QUESTION
    model.rotary.fix_length(len(ids))
    place: Any = {"dtype": model.dtype, "device": model.device}
    used = spec or model.spec
    prefilled = PrefillCache(used, Full(), model.rotary, tokens=body, chunk=CHUNK, state=model.empty_state(), **place)
    for start in range(0, body, CHUNK):
        new = min(CHUNK, body - start)
        prefilled.step = ChunkStep(start=start, new=new, last=start + new == body)
        model.forward(ids[start : start + new], prefilled, logits=False)
        prefilled.seen += new
    cache = DecodeCache(used, model.rotary, freeze(prefilled, Dense()), **place)
    rows = []
    last = len(ids) - STEPS
    for part in (ids[body:last], *torch.split(ids[last:], 1)):
        logits = model.forward(part, cache, logits="all" if len(part) > 1 else True)
        assert logits is not None
        rows.append(logits.view(len(part), -1))
        cache.extend(len(part))
    return torch.cat(rows).float()


class _Watch:
    """Outputs of a model's layers in a full forward pass, and in one through the cache.

    Attention layers are compared by their own output. Decoder layers without attention, and those with a recurrent
    state, are compared as a whole: by what they add to their input.
    """

    def __init__(self, model: Model) -> None:
        module = model.module
        stateful = {name.partition(".")[0] for name in getattr(model.first_state, "layout", ())}
        attending = {name: part for name, part in module.named_modules() if hasattr(part, LAYER)}
        lists = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.ModuleList)]
        holders = [(n, p) for n, p in lists if any(a.startswith(f"{n}.") for a in attending)]
        self.layers: dict[str, nn.Module] = {}
        for name, holder in holders[:1]:  # the outermost comes first
            self.layers = {f"{name}.{i}": layer for i, layer in enumerate(holder)}
        compared = {
            name: part
            for name, part in self.layers.items()
            if name.rpartition(".")[2] in stateful or not any(a.startswith(f"{name}.") for a in attending)
        }
        self.compared = {**attending, **compared}
        self.outputs: dict[str, Tensor] = {}
        self.inputs: dict[str, Tensor] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Note the outputs of all layers."""
        with ExitStack() as stack:
            for name, part in {**self.layers, **self.compared}.items():

                def note(_part: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
                    self.outputs[name] = _first(output).clone()
                    given = args[0] if args else kwargs.get("hidden_states")
                    if isinstance(given, Tensor) and given.shape == self.outputs[name].shape:
                        self.inputs[name] = given.clone()

                stack.callback(part.register_forward_hook(note, with_kwargs=True).remove)
            yield

    @contextmanager
    def comparing(self, differing: dict[str, float], tolerance: float) -> Iterator[None]:
        """Compare each layer's output with what was noted, and give the next layer what was noted."""
        rows: dict[str, list[Tensor]] = {name: [] for name in self.compared}
        starts = dict.fromkeys({**self.layers, **self.compared}, 0)
        with ExitStack() as stack:
            for name, part in {**self.compared, **self.layers}.items():

                def meet(_part: nn.Module, _args: Any, output: Any, name: str = name) -> Any:
                    made, whole = _first(output), self.outputs[name]
                    start = starts[name]
                    starts[name] = stop = start + made.shape[-2]
                    noted = whole[..., start:stop, :]
                    if name in rows:
                        change = noted
                        if name in self.layers and name in self.inputs:
                            change = noted - self.inputs[name][..., start:stop, :]
                        floor = torch.finfo(noted.dtype).eps * noted.float().norm(dim=-1)
                        far = (made.float() - noted.float()).norm(dim=-1)
                        rows[name].append((far > tolerance * change.float().norm(dim=-1) + 4 * floor).flatten())
                    if name not in self.layers:
                        return None
                    return noted if isinstance(output, Tensor) else (noted, *output[1:])

                stack.callback(part.register_forward_hook(meet).remove)
            yield
        differing.update({name: float(torch.cat(found).float().mean()) for name, found in rows.items() if found})


def _first(output: Any) -> Tensor:
    found = output if isinstance(output, Tensor) else output[0]
    assert isinstance(found, Tensor)
    return found


@contextmanager
def narrowed(model: Model) -> Iterator[ModelSpec | None]:
    """Make windows and original lengths so small that the self-test's tokens cross them.

    Yields:
        the model's facts with these windows; ``None`` if there is nothing to narrow.
    """
    changed: list[tuple[Any, str, Any]] = []
    parts: list[Any] = list(model.module.modules())
    for config in {id(c): c for p in parts if (c := getattr(p, "config", None)) is not None}.values():
        parts.append(config)
        parts += [p for p in vars(config).values() if isinstance(p, dict)]
        parts += [q for p in vars(config).values() if isinstance(p, dict) for q in p.values() if isinstance(q, dict)]
    seen: set[int] = set()
    for part in parts:
        values = part if isinstance(part, dict) else vars(part)
        if id(values) in seen:
            continue
        seen.add(id(values))
        for name, value in list(values.items()):
            fits = isinstance(value, int) and not isinstance(value, bool) and value > TOKENS
            if fits and any(word in str(name) for word in _NAMED):
                changed.append((values, name, value))
                values[name] = _NARROW
    if not changed:
        yield None
        return
    horizon = model.rotary.horizon
    model.rotary.fix_length(0)  # forgets frequencies that were chosen for the length
    try:
        sliding = tuple(None if w is None else min(w, _NARROW) if w > TOKENS else w for w in model.spec.sliding)
        yield replace(model.spec, sliding=sliding)
    finally:
        for values, name, value in changed:
            values[name] = value
        model.rotary.fix_length(0)
        model.rotary.fix_length(horizon)
