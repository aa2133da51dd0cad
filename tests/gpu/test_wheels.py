"""Wheels for a machine without a package index: what is missing and what that needs, and a smaller bitsandbytes."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from benchmarks.gpu import wheels


def wheel(folder: Path, name: str, requires: list[str], files: dict[str, str]) -> Path:
    """A valid wheel, but for the digests of its record."""
    info, path = f"{name}-1.0.dist-info", folder / f"{name}-1.0-py3-none-any.whl"
    lines = [f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0", *(f"Requires-Dist: {text}" for text in requires)]
    contents = {
        **files,
        f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for file, text in contents.items():
            archive.writestr(file, text)
        archive.writestr(f"{info}/RECORD", "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"]))
    return path


def test_what_is_missing_is_collected_with_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A present package is left out unless its version is known and not accepted; a marker for another system counts
    for nothing; a circle ends."""
    needs = {
        "bitsandbytes": ["torch>=2"],
        "openpyxl": ["et-xmlfile", 'colorama; sys_platform == "win32"'],
        "et-xmlfile": ["openpyxl"],
        "transformers": ["numpy"],
    }
    asked: list[Requirement] = []

    def download(requirement: Requirement, folder: Path, _python: str) -> Path:
        asked.append(requirement)
        return wheel(folder, requirement.name.replace("-", "_"), needs.get(requirement.name, []), {})

    monkeypatch.setattr(wheels, "download", download)
    monkeypatch.setattr(wheels, "TESTS", ())
    project = {"bitsandbytes", "openpyxl", "transformers", "torch", "numpy"}
    monkeypatch.setattr(
        wheels,
        "needed",
        lambda metadata, python: [
            r for r in needed(metadata, python) if r.name in project | {"et-xmlfile", "colorama"}
        ],
    )
    found = wheels.collect(tmp_path, {"torch": "2.11.0", "transformers": "5.17.0", "numpy": ""}, "3.12", "130")
    assert sorted(r.name for r in asked) == ["bitsandbytes", "et-xmlfile", "openpyxl", "transformers"]
    assert len(found) == 4


needed = wheels.needed


def test_a_smaller_wheel_is_a_valid_one(tmp_path: Path) -> None:
    """pip checks the digests of its files; libraries of other CUDA versions and makers are gone."""
    libraries = [
        f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda118", "cuda130", "rocm64", "xpu2025", "cpu")
    ]
    path = wheel(tmp_path, "bitsandbytes", [], {"bitsandbytes/__init__.py": "x = 1\n", **dict.fromkeys(libraries, "y")})
    wheels.strip(path, "130")
    target = tmp_path / "target"
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(target), str(path)]
    subprocess.run(command, check=True, capture_output=True)
    kept = sorted(file.name for file in (target / "bitsandbytes").glob("*.so"))
    assert kept == ["libbitsandbytes_cpu.so", "libbitsandbytes_cuda130.so"]
    assert (target / "bitsandbytes" / "__init__.py").read_text() == "x = 1\n"


def test_a_version_that_is_not_accepted_is_missing() -> None:
    accepts = Requirement("transformers>=5.20,<5.24")
    assert not wheels.has({"transformers": "5.17.0"}, accepts)
    assert wheels.has({"transformers": "5.21.0"}, accepts)
    assert wheels.has({"transformers": ""}, accepts)
    assert not wheels.has({}, accepts)
