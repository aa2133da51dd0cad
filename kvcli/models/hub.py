"""Models on the Hugging Face hub: its local cache, downloads, and clear errors.

Weights stay in the hub's own cache, which other tools share. Only safetensors are fetched, never pickle and never a
repository's code.
"""

import fnmatch
import io
import os
import queue
import re
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvcli.errors import KvcliError, ModelError, ResourceError
from kvcli.events import Download, Notice
from kvcli.models import weights
from kvcli.utils import files

# Files of the repository's top folder; "original/" and "onnx/" hold the same weights once more.
SMALL = ("*.json", "*.jinja", "tokenizer.model", "*.tiktoken", "vocab.txt", "merges.txt", "spiece.model")
PAPERS = ("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")

_YES = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Snapshot:
    """One revision of a repository in the hub's cache."""

    path: Path
    revision: str
    licence: str | None


def switched_off() -> bool:
    """Whether the user's environment forbids the hub."""
    return any(os.environ.get(name, "").upper() in _YES for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def cached(repo: str, revision: str | None) -> Snapshot | None:
    """The snapshot of ``repo`` in the cache, complete or not. Uses no network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(repo, "config.json", revision=revision)
    except HFValidationError:
        raise ModelError(f"unknown model: {repo!r} is not a hub id (owner/name)", "kvcli models ls") from None
    if not isinstance(config, str):
        return None
    path = Path(config).parent
    return Snapshot(path, path.name, licence(path))


def licence(directory: Path) -> str | None:
    """The licence that a model card names in its first lines."""
    try:
        card = (directory / "README.md").read_text("utf-8", "replace")
    except OSError:
        return None
    front = re.match(r"\A---\s*\n(.*?)\n---", card, re.DOTALL)
    lines = re.findall(r"^(license|license_name):[ \t]*['\"]?([^'\"\s#]+)", front[1], re.MULTILINE) if front else []
    found: dict[str, str] = dict(lines)
    name = found.get("license")
    return found.get("license_name", name) if name == "other" else name


def fetch(
    repo: str, revision: str | None = None, *, only_config: bool = False, timeout: float = 10.0
) -> Generator[Download, None, Snapshot]:
    """Download a repository's config, tokenizer and safetensors into the hub's cache.

    ``timeout`` (seconds) bounds the first request, which shows whether the hub can be reached.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants

    try:
        info = hub.HfApi(endpoint=constants.ENDPOINT).model_info(
            repo, revision=revision, files_metadata=True, timeout=timeout
        )
    except Exception as error:
        raise explain(error, repo, revision) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    commit = info.sha or revision or "main"
    small = [name for name in sizes if "/" not in name and any(fnmatch.fnmatch(name, p) for p in SMALL + PAPERS)]
    if "config.json" not in sizes:
        raise _no_config(repo, sizes)
    for name in small:
        yield from _file(repo, name, commit, sizes[name])
    path = Path(str(hub.try_to_load_from_cache(repo, "config.json", revision=commit))).parent
    if not only_config:
        shards = _shards(repo, path, sizes)
        files.require_space(path, sum(sizes[name] for name in shards if not (path / name).is_file()), repo)
        for name in shards:
            yield from _file(repo, name, commit, sizes[name])
    if revision != commit:
        # Only a request by the name "main" tells the cache what it means. Last, when all other files are here.
        _call(lambda: hub.hf_hub_download(repo, "config.json", revision=revision), repo, revision)
    return Snapshot(path, commit, licence(path))


def heads(
    repo: str, *, offline: bool, most: int | None = None, timeout: float = 10.0
) -> Generator[Download | Notice, None, Path]:
    """Retaining heads published as a repository: its safetensors or its ``.bin`` files, whichever are smaller.

    The only pickle that kvcli ever fetches; it is opened with ``weights_only``, which runs no code.

    Args:
        repo: the hub id.
        offline: use no network.
        most: refuse to fetch more bytes; by default any size.
        timeout: seconds for the first request.
    """
    import huggingface_hub as hub
    from huggingface_hub import constants

    if (here := cached_heads(repo)) is not None:
        return here
    if offline or switched_off():
        raise ModelError(f"offline: {repo} is not in the hub's cache", f"hf download {repo} (with a network)")
    try:
        info = hub.HfApi(endpoint=constants.ENDPOINT).model_info(repo, files_metadata=True, timeout=timeout)
    except Exception as error:
        raise explain(error, repo, None) from error
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}
    names = _heads_files(sizes)
    if not names:
        raise ModelError(f"{repo} has no safetensors and no .bin file, so no heads", "--heads FILE")
    total = sum(sizes[name] for name in names)
    if most is not None and total > most:
        raise ModelError(f"{repo} has {total / 1e9:,.1f} GB, more than heads alone", f"--heads {repo}")
    terms = getattr(info.card_data, "license", None) or "no licence named"
    yield Notice(f"fetching {repo}, {total / 1e6:,.0f} MB, {terms}")
    Path(constants.HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    files.require_space(Path(constants.HF_HUB_CACHE), total, repo)
    for name in names:
        yield from _file(repo, name, info.sha or "main", sizes[name])
    _call(lambda: hub.hf_hub_download(repo, names[0]), repo, None)  # tells the cache what "main" means
    first = Path(str(hub.try_to_load_from_cache(repo, names[0], revision=info.sha)))
    return first if len(names) == 1 else first.parent


def cached_heads(repo: str) -> Path | None:
    """The file or the folder of heads that :func:`heads` has fetched, if it is here as a whole."""
    import huggingface_hub as hub

    try:
        here = Path(hub.snapshot_download(repo, local_files_only=True))
    except (OSError, ValueError):
        return None
    names = _heads_files({path.name: path.stat().st_size for path in here.iterdir()})
    if not names or not _all_parts(names):
        return None
    return here / names[0] if len(names) == 1 else here


def _heads_files(sizes: dict[str, int]) -> list[str]:
    """The safetensors or the ``.bin`` files of a repository's top folder, whichever are smaller."""
    kinds = ([n for n in sorted(sizes) if n.endswith(kind) and "/" not in n] for kind in (".safetensors", ".bin"))
    return min((names for names in kinds if names), key=lambda names: sum(sizes[n] for n in names), default=[])


def _all_parts(names: list[str]) -> bool:
    """Whether files that say ``-of-N`` are N."""
    found = re.search(r"-of-0*(\d+)\.", names[0])
    return found is None or len(names) == int(found[1])


def _shards(repo: str, path: Path, sizes: dict[str, int]) -> list[str]:
    """The weight files to fetch; "consolidated.safetensors" is the same weights in another layout."""
    if weights.INDEX in sizes:
        index = weights.read_json(path / weights.INDEX)
        names = sorted({str(name) for name in index.get("weight_map", {}).values()})
        absent = [name for name in names if name not in sizes]
        if absent or not names:
            raise ModelError(f"incomplete model: {repo} has no {absent[0] if absent else 'weights in its index'}")
        return names
    if weights.SINGLE in sizes:
        return [weights.SINGLE]
    if "adapter_config.json" in sizes:
        raise ModelError(f"{repo} is an adapter (LoRA), not a model", "merge it into its base model and name that")
    if any(name.endswith((".bin", ".pt", ".pth")) for name in sizes):
        raise ModelError(f"{repo} has its weights only as pickle, not as safetensors")
    raise ModelError(f"{repo} has no safetensors weights")


def _no_config(repo: str, sizes: dict[str, int]) -> ModelError:
    ggufs = sorted(name for name in sizes if name.endswith(".gguf"))
    if ggufs:
        return ModelError(f"{repo} has only GGUF files", f"hf download {repo} {ggufs[0]}, then -m with the file")
    if "adapter_config.json" in sizes:
        return ModelError(f"{repo} is an adapter (LoRA), not a model", "merge it into its base model and name that")
    return ModelError(f"{repo} has no config.json: it is not a model that transformers can load")


def _file(repo: str, name: str, commit: str, size: int) -> Generator[Download, None, None]:
    """Download one file into the cache, in a thread, so that its progress can be yielded."""
    import huggingface_hub as hub
    import tqdm  # type: ignore[import-untyped]

    here = hub.try_to_load_from_cache(repo, name, revision=commit)
    if isinstance(here, str) and Path(here).stat().st_size == size:
        return
    steps: queue.Queue[int | None] = queue.Queue()
    stopped = threading.Event()
    label = f"{repo.split('/')[-1]}/{name}"

    class Bar(tqdm.tqdm):  # type: ignore[misc]
        """Receives the hub's progress; has the interface of a tqdm bar."""

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            if stopped.is_set():
                raise InterruptedError("download stopped")
            steps.put(int(self.n + (n or 0)))
            drawn: bool | None = super().update(n)
            return drawn

    failure: list[Exception] = []

    def work() -> None:
        try:
            hub.hf_hub_download(repo, name, revision=commit, tqdm_class=Bar, force_download=isinstance(here, str))
        except Exception as error:
            failure.append(error)
        finally:
            steps.put(None)

    def latest() -> int | None:
        done = steps.get()
        while done is not None and not steps.empty():  # a display needs only the latest figure
            done = steps.get()
        return done

    yield Download(label, 0, size or None)
    thread = threading.Thread(target=work, name=f"download {label}", daemon=True)
    thread.start()
    try:
        while (done := latest()) is not None:
            yield Download(label, done, size or None)
    finally:
        stopped.set()
    if failure:
        raise explain(failure[0], repo, commit) from failure[0]
    yield Download(label, size, size or None)


def _call(request: Callable[[], object], repo: str, revision: str | None) -> None:
    try:
        request()
    except Exception as error:
        raise explain(error, repo, revision) from error


def explain(error: Exception, repo: str, revision: str | None) -> KvcliError:
    """The cause of a hub error, and its remedy."""
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{repo}"
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    if isinstance(error, KvcliError):
        return error
    if isinstance(error, errors.GatedRepoError):
        if get_token() is None:
            return ModelError(
                f"{repo} is gated and you are not logged in to the hub",
                f"accept the licence at {page}, then: hf auth login",
            )
        return ModelError(
            f"{repo} is gated: your account has not accepted its licence, or waits for approval",
            f"accept the licence at {page}",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(f"{repo} has no revision {revision!r}", f"see {page}/commits/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        if get_token() is None:
            return ModelError(
                f"unknown model: the hub has no {repo}, or it is private",
                "kvcli models ls, or: hf auth login",
            )
        return ModelError(f"unknown model: the hub has no {repo}, or your account may not see it", "kvcli models ls")
    if isinstance(error, errors.HFValidationError):
        return ModelError(f"unknown model: {repo!r} is not a hub id (owner/name)", "kvcli models ls")
    if status in (401, 403):
        return ModelError(f"the hub refuses your token for {repo} (HTTP {status})", "hf auth login")
    if status is not None:
        return ModelError(f"the hub answered HTTP {status} for {repo}", f"try again later, or see {page}")
    if isinstance(error, OSError) and error.errno in (28, 122):
        return ResourceError(f"the disk of the hub's cache is full: {repo}", "hf cache prune, or set HF_HOME")
    cause = error.__cause__ or error
    return ModelError(
        f"offline: {repo} is not here and the hub cannot be reached ({type(cause).__name__}: {cause})",
        "kvcli models ls shows what is here; -m takes a local directory",
    )
