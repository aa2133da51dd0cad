"""Running programs with triton's kernels: on a GPU where there is one, else in triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import torch

HEAD = """
import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
made, like = torch.empty, torch.empty_like

def poisoned(x):
    return x.fill_(float("nan") if x.is_floating_point() else 99)

torch.empty = lambda *a, **k: poisoned(made(*a, **k))
torch.empty_like = lambda *a, **k: poisoned(like(*a, **k))
"""
"""Outputs are poisoned, so that what a kernel leaves out is seen; ``DEVICE`` is where tensors belong."""


def run(program: str, folder: Path) -> str:
    """What a program printed, in a process of its own, for the interpreter is chosen when triton is imported.

    Raises:
        AssertionError: it failed; with what it said.
    """
    root = Path(__file__).parents[3]
    paths = os.pathsep.join([str(root), str(root / "kernels")])
    given = {} if torch.cuda.is_available() else {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", HEAD + program],
        env={**os.environ, **given, "PYTHONPATH": paths, "TRITON_CACHE_DIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()
