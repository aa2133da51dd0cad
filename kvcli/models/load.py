"""From a model on disk to something the engine can run: weights, sizes, RoPE taken out, probe passed."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from kvcli.errors import KvcliError, ModelError, ResourceError, UnsupportedModel, UsageError
from kvcli.models import (
    attention,
    condensed,
    cpu_linear,
    defaults,
    device_map,
    foreign_code,
    latent,
    packed_experts,
    partial_imports,
    quantization,
    recurrent,
    rope,
    self_test,
    trial,
)
from kvcli.models.auto_class import attend_by, auto_class, tower_parts
from kvcli.models.latent import Latent
from kvcli.models.model import Model, OutputHead, matrices, weight_bytes
from kvcli.models.pictures import PictureReader
from kvcli.models.spec import fingerprint, former_fingerprint, intermediate_size, loaded_config
from kvcli.models.trial import Call
from kvcli.models.weights import ModelSource, require_all
from kvcli.types import ModelSpec
from kvcli_kernels.attention import CappedScale
from kvcli_kernels.linear import prepare


def default_device() -> str:
    """The first CUDA GPU, else the CPU."""
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def default_dtype(device: str) -> str:
    """Return :func:`kvcli.models.defaults.default_dtype`, or float16 on a GPU without bfloat16."""
    narrow = device.startswith("cuda") and not torch.cuda.is_bf16_supported()
    return "float16" if narrow else defaults.default_dtype(device)


def load(
    source: ModelSource,
    *,
    device: str | None = None,
    dtype: str | None = None,
    weights: str = "bf16",
    pictures: bool = False,
    ready: Callable[[], None] = lambda: None,
    announce: Callable[[str], None] = warnings.warn,
) -> Model:
    """Load a model from a resolved source.

    Args:
        source: from :func:`kvcli.models.resolve.resolve`.
        device, dtype: as for :func:`placed`.
        weights: one of :data:`kvcli.types.WEIGHTS`; ``bf16`` is as stored.
        pictures: load the vision tower too, so that pictures can be read.
        ready: called when the whole program is loaded, tokenizer and model code included, but no weights yet. Memory
            that the process takes then is not the model's.
        announce: receives one line about a model that is larger than the GPU (:mod:`kvcli.models.device_map`).

    Raises:
        UsageError: a dtype or device that does not exist here.
        ModelError: files that transformers cannot read, or pictures for a model that reads none.
        UnsupportedModel: an architecture whose attention kvcli does not understand, or that fails the probe.
        ResourceError: not enough memory for the weights.
    """
    device, dtype = placed(device, dtype)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    plain = loaded_config(source.name, source.config)
    made = {"config": AutoConfig.for_model(**plain)} if "kvcli_owners" in plain else {}
    attention.register()
    held = {} if weights == "bf16" else quantization.options(source, weights, getattr(torch, dtype))
    own = source.quantized
    quiet = nullcontext if own is None else quantization.suppress_output
    if own is not None:
        held = quantization.reading(source, device)
        if text := quantization.load_notice(source, device, dtype):
            announce(text)
    try:
        with foreign_code.no_questions():
            with foreign_code.one_error(source.name):
                tokenizer = AutoTokenizer.from_pretrained(
                    source.path, local_files_only=True, trust_remote_code=False, **made
                )
                tokenizer(foreign_code.TRIAL)
            config = made.get("config") or AutoConfig.from_pretrained(
                source.path, local_files_only=True, trust_remote_code=False
            )
            reader = PictureReader.of(source, config) if pictures else None
            cls = auto_class(config, pictures=pictures)
            if own is not None:
                quantization.prepare(source)
            if device == "cpu":
                prepare()
            ready()
            places: dict[str, str] | None = {"": device} if device != "cpu" or held else None
            if device != "cpu" and not held and own is None:
                wide = device_map.needed(config, getattr(torch, dtype), device, source.name)
                if wide is not None:
                    announce(wide.text)
                    places = wide.places
            with (
                _no_progress_bar(),
                quiet(),
                packed_experts.packing(weights, own) if weights != "bf16" or own == "mxfp4" else nullcontext(),
                nullcontext() if own else partial_imports.without_compiler(),
            ):
                read = partial(
                    cls.from_pretrained,
                    source.path,
                    trust_remote_code=False,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # refused below, with their names
                    dtype=getattr(torch, dtype),
                    attn_implementation=attention.NAME,
                    local_files_only=True,
                    device_map=places,
                    **made,
                    **held,
                )
                try:
                    module, found = read()
                except NotImplementedError:
                    if not partial_imports.complete():
                        raise
                    module, found = read()
            own_class = source.config.get("architectures") or ()
            if "kvcli_owners" in plain:
                found = condensed.without_spare(found, plain)
            require_all(found, source.name, spare=own is not None, made=own_class)
            if held or own is not None:
                quantization.fit_layers(module, weights)
                quantization.cast_leftovers(module, getattr(torch, dtype))
    except torch.OutOfMemoryError as error:
        raise ResourceError(
            f"{source.name} does not fit the memory of {device}: {_line(error)}", "--device cpu"
        ) from error
    except (ImportError, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise (
            foreign_code.needs_code(source.name, error)
            or foreign_code.unknown_type(source.name, source.config, error)
            or quantization.unreadable(source, error)
            or ModelError(f"{source.name}: cannot be loaded: {_line(error)}", f"kvcli models show {source.name}")
        ) from error
    try:
        with quiet():  # the probe may be the first that runs
            model = wrap(
                module,
                tokenizer,
                name=source.name,
                fingerprint=fingerprint(source, weights),
                former=former_fingerprint(source, weights),
            )
    except UnsupportedModel as error:
        cause = error.__cause__
        raise (None if cause is None else quantization.unreadable(source, cause)) or error from None
    if owners := plain.get("kvcli_owners"):
        model.spec = replace(model.spec, owners=tuple(owners), passes=plain["kvcli_passes"])
        removed = condensed.condense(model.module, model.spec)
        model.spec = replace(model.spec, weight_bytes=model.spec.weight_bytes - removed)
    if reader is not None:
        model.pictures, model.spec = reader, replace(model.spec, picture_bytes=reader.nbytes)
    if own is None:
        packed = cpu_linear.map_packed(model.module, source.path) if source.few_bits and weights == "bf16" else 0
        mapped = packed + cpu_linear.map_stored(model.module, source.path)
        model.spec = replace(model.spec, mapped_bytes=mapped)
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """A library writes nothing on the terminal; transformers' setting is that of the process."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def placed(device: str | None, dtype: str | None) -> tuple[str, str]:
    """Where a model goes and in which dtype, checked; ``None`` is what this machine does best.

    Raises:
        UsageError: a dtype or device that does not exist here.
    """
    device = _checked_device(device)
    return device, defaults.known_dtype(dtype) or default_dtype(device)


def wrap(module: PreTrainedModel, tokenizer: Any, *, name: str, fingerprint: str | None, former: str = "") -> Model:
    """Put a transformers model that is already in memory to work; runs the probe.

    Args:
        module: a causal language model.
        tokenizer: or ``None``.
        name: for messages.
        fingerprint: key under which the probe's verdict is remembered; ``None`` probes every time.
        former: the fingerprint that kvcli 0.1.0 gave to the model.
    """
    attention.register()
    try:
        return _wrap(module, tokenizer, name, fingerprint, former)
    except (KvcliError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model's code fails in ways of its own
        raise UnsupportedModel(
            f"{name} ({type(module).__name__}) fails in a trial: {type(error).__name__}: {_line(error)}"
            f"{_place(error, module)}"
        ) from error


def _wrap(module: PreTrainedModel, tokenizer: Any, name: str, fingerprint: str | None, former: str) -> Model:
    module.eval().requires_grad_(False)
    head = module.get_output_embeddings()
    if head is None:
        raise UnsupportedModel(f"{type(module).__name__} has no language-model head")
    attend_by(module, attention.NAME)
    stored = weight_bytes(module)  # before a forward pass: that moves scales out of sight
    state = recurrent.empty(module.config)
    rotated = trial.run(module, state=state)
    trial.one_call_a_layer(module, rotated.calls)
    first = recurrent.first(module.config, state)
    parts = [call.module for call in rotated.calls]
    rotary, unrotated, plain = rope.detach_rope(
        module, rotated, lambda: trial.run(module, hidden=parts, state=recurrent.empty(module.config))
    )
    if not rotated.rotaries:
        _require_unbounded_positions(module)
    thin_layers = cpu_linear.install(module, spare=tower_parts(module))

    def again() -> trial.Trial:
        unrotated(True)
        try:
            return trial.run(module, state=recurrent.empty(module.config))
        finally:
            unrotated(False)

    own_keys = all(call.q.shape[0] == call.k.shape[0] for call in rotated.calls)  # as of latents
    latents = latent.find(rotary, rotated.calls, again) if own_keys else []
    kept_latents = latent.install(rotated.calls, latents) if latents else lambda _ours: None

    def switch(ours: bool) -> None:
        unrotated(ours)
        thin_layers(ours)
        kept_latents(ours)

    switch(True)
    for index, part in enumerate(parts):
        setattr(part, attention.LAYER, index)
    spec = _spec(module, plain.calls, latents, name, fingerprint or name, former)
    multiplied = round(sum(numbers * share for numbers, _, share in matrices(module)))
    states = 0 if state is None else state.nbytes
    spec = replace(spec, weight_bytes=stored, state_bytes=states, multiplied=multiplied)
    model = Model(spec, module, tokenizer, rotary, _eos(module, tokenizer), OutputHead(head), first, switch)
    self_test.check(model, remember=fingerprint is not None)
    return model


def _require_unbounded_positions(module: PreTrainedModel) -> None:
    """Refuse models with an embedding per position: a text may be longer than what is kept of it."""
    most = int(getattr(module.config.get_text_config(), "max_position_embeddings", 0) or 0)
    try:
        trial.run(module, state=recurrent.empty(module.config), start=most + trial.TOKENS)
    except (IndexError, RuntimeError) as error:
        raise UnsupportedModel(
            f"{type(module).__name__} has an embedding for each of {most:,} positions and none for later ones"
        ) from error


def _place(error: Exception, module: nn.Module) -> str:
    """The innermost part of a model that an exception passed, as " in …"."""
    names = {id(part): name for name, part in module.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        found = next((n for key in ("self", "module") if (n := names.get(id(frame.f_locals.get(key))))), found)
        trace = trace.tb_next
    return f", in {found}" if found else ""


def _spec(
    module: PreTrainedModel, calls: Sequence[Call], latents: Sequence[Latent], name: str, fingerprint: str, former: str
) -> ModelSpec:
    config = module.config.get_text_config()
    shapes = tuple((call.q.shape[0], call.k.shape[0], call.k.shape[2]) for call in calls)
    if latents:
        pairs = zip(shapes, latents, strict=True)
        shapes = tuple((heads, 1, dim - made.plain + made.rank) for (heads, _, dim), made in pairs)
    heads, kv_heads, head_dim = (max(column) for column in zip(*shapes, strict=True))
    here = [p for p in module.parameters() if p.device.type != "meta"]  # accelerate fetches the others
    devices = tuple(str(call.q.device) for call in calls)
    sliding = tuple(call.window for call in calls)
    owners = tuple(
        i if call.source is None or sliding[call.source] != call.window else call.source for i, call in enumerate(calls)
    )
    return ModelSpec(
        name=name,
        fingerprint=fingerprint,
        former_fingerprint=former,
        layers=len(calls),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=config.hidden_size,
        intermediate=intermediate_size(config),
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings,
        sliding=sliding,
        shapes=shapes if len(set(shapes)) > 1 else (),
        owners=owners if owners != tuple(range(len(calls))) else (),
        latent=bool(latents),
        capped=any(isinstance(call.scale, CappedScale) for call in calls),
        devices=devices if len(set(devices)) > 1 else (),
        dtype=str(module.dtype).removeprefix("torch."),
        device=str(here[0].device),
        weight_bytes=0,
        host_weight_bytes=sum(p.nbytes for p in module.parameters() if p.device.type == "meta"),
    )


def _eos(module: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: those of the generation settings, the config, and the tokenizer's own."""
    generation: GenerationConfig | None = getattr(module, "generation_config", None)
    configs = (generation, module.config, module.config.get_text_config(), tokenizer)
    found: set[int] = set()
    for config in configs:
        ids = getattr(config, "eos_token_id", None)
        found.update(ids if isinstance(ids, list | tuple) else [] if ids is None else [ids])
    found.update(_end_of_turn(tokenizer))
    return frozenset(found)


def _end_of_turn(tokenizer: Any) -> list[int]:
    """The special token that the chat template writes after an answer, if it writes one."""
    if not getattr(tokenizer, "chat_template", None):
        return []
    mark = "\x02REPLY\x03"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        _, found, end = str(text).partition(mark)
        ids = tokenizer(end.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    except Exception:  # templates are programs and fail in ways of their own
        return []
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [ids[0]] if ids and ids[0] in special else []


def _checked_device(device: str | None) -> str:
    device = device or default_device()
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise UsageError(f"'{device}' is not a device", "--device cpu") from error
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"this machine has no device '{device}'", "--device cpu")
    return "cuda:0" if device == "cuda" else device


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:300]
