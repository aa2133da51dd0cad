"""Collect the wheels that a machine with torch, triton and transformers lacks: ``make gpu-wheels``.

    python -m benchmarks.gpu.wheels --python 3.12 --present packages.txt --into build/gpu/wheels

A machine with a GPU may have no way to a package index. This collects what kvcli needs in addition to ``--present``: by
default :data:`PRESENT`, else the names in a file (``pip list --format=freeze``). Packages of which the machine has a
version that kvcli does not take are collected too, if their version is given. bitsandbytes keeps the library of one
CUDA version only, which makes it twelve times smaller. ``benchmarks/gpu.sh`` installs what it finds in the folder.
The default model's tokenizer is saved beside it, because the step "training" cuts a real text into tokens.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable
from email.parser import HeaderParser
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name, parse_wheel_filename

from benchmarks.passkey import load

ROOT = Path(__file__).parents[2]
MIB = 2**20

PRESENT = (
    *("accelerate", "certifi", "click", "filelock", "fsspec", "h11", "huggingface-hub==1.33.0", "hypothesis", "idna"),
    *("jinja2", "llvmlite", "lxml", "markdown-it-py", "markupsafe", "mdurl", "mpmath", "networkx", "numba", "numpy"),
    *("nvidia-ml-py", "packaging", "pathspec", "pluggy", "psutil", "pygments", "pytest", "pytest-xdist", "pyyaml"),
    *("regex", "requests", "rich", "safetensors", "scipy", "setuptools", "shellingham", "sympy", "tokenizers==0.23.2"),
    *("torch==2.11.0", "tqdm", "transformers==5.17.0", "triton==3.6.0", "typer", "typing-extensions", "urllib3"),
)
"""What a machine for training usually has, with the versions that were met."""

TESTS = ("jsonschema>=4.23", "pexpect>=4.9")
"""What the tests need that ``benchmarks/gpu.sh`` runs."""


def needed(metadata: Iterable[str], python: str) -> list[Requirement]:
    """The requirements of a package on Linux, without extras."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "extra": ""}
    parsed = map(Requirement, metadata)
    return [r for r in parsed if r.marker is None or r.marker.evaluate(environment)]


def has(present: dict[str, str], requirement: Requirement) -> bool:
    """Whether the machine has a package in a version that is accepted; an unknown version is."""
    version = present.get(canonicalize_name(requirement.name))
    return version is not None and (not version or requirement.specifier.contains(version, prereleases=True))


def download(requirement: Requirement, folder: Path, python: str) -> Path:
    """The wheel of a requirement for Linux on x86-64.

    Raises:
        SystemExit: pip finds none.
    """
    platforms = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-version", python, "--implementation", "cp", "--dest", str(folder)]
    command += [word for name in (*platforms, "manylinux2014_x86_64", "linux_x86_64") for word in ("--platform", name)]
    before = set(folder.iterdir())
    done = subprocess.run([*command, f"{requirement.name}{requirement.specifier}"], capture_output=True, text=True)
    made = set(folder.iterdir()) - before
    if done.returncode or len(made) != 1:
        raise SystemExit(f"no wheel for {requirement}: {done.stderr.strip()[-400:]}")
    return made.pop()


def metadata(wheel: Path) -> list[str]:
    """The requirements in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n))
        return HeaderParser().parsestr(archive.read(name).decode()).get_all("Requires-Dist") or []


def strip(wheel: Path, cuda: str) -> None:
    """Leave out libraries of other CUDA versions and of other makers' GPUs; the wheel stays a valid one."""
    kept = re.compile(rf"lib\w+_(cuda{cuda}|cpu)\.so")
    with tempfile.TemporaryDirectory() as made:
        smaller = Path(made, wheel.name)
        with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            record, lines = "", []
            for name in old.namelist():
                last = name.rpartition("/")[2]
                if re.fullmatch(r"lib\w+\.so", last) and not kept.fullmatch(last):
                    continue
                if name.endswith(".dist-info/RECORD"):
                    record = name
                    continue
                content = old.read(name)
                new.writestr(old.getinfo(name), content, zipfile.ZIP_DEFLATED)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                lines.append(f"{name},sha256={digest},{len(content)}")
            new.writestr(record, "\n".join([*lines, f"{record},,", ""]))
        shutil.copy(smaller, wheel)


def collect(folder: Path, present: dict[str, str], python: str, cuda: str) -> list[Path]:
    """Wheels of what is missing, and of what that needs in turn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    open_, found = needed([*project["dependencies"], *TESTS], python), dict[str, Path]()
    while open_:
        requirement = open_.pop(0)
        name = canonicalize_name(requirement.name)
        if name in found or has(present, requirement):
            continue
        found[name] = download(requirement, folder, python)
        if name == "bitsandbytes":
            strip(found[name], cuda)
        open_ += needed(metadata(found[name]), python)
    return sorted(found.values())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="version of Python on the machine")
    parser.add_argument("--cuda", default="130", help="version of CUDA that its torch was built with")
    parser.add_argument("--present", type=Path, help="its packages, a name or name==version a line")
    parser.add_argument("--into", type=Path, default=ROOT / "build" / "gpu" / "wheels")
    parser.add_argument("--limit", type=float, default=40, help="MiB that all wheels may have")
    options = parser.parse_args()
    names = options.present.read_text().split() if options.present else PRESENT
    present = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in names)}
    shutil.rmtree(options.into, ignore_errors=True)
    options.into.mkdir(parents=True)
    wheels = collect(options.into, present, options.python, options.cuda)
    for wheel in wheels:
        name, version, *_ = parse_wheel_filename(wheel.name)
        print(f"{wheel.stat().st_size / MIB:6.1f} MiB  {name} {version}")
    load("smollm2-135m").tokenizer.save_pretrained(options.into.parent / "tokenizer")
    total = sum(wheel.stat().st_size for wheel in wheels) / MIB
    print(f"{total:6.1f} MiB  {len(wheels)} wheels")
    if total > options.limit:
        print(f"more than --limit {options.limit:g} MiB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
