"""How many files and frames ``kvcli ask`` crosses from ``main`` to the tensor operation in prefill.

    python -m benchmarks.path [FILE] [QUESTION]

Runs one question in this process under ``sys.setprofile``. Files are modules of kvcli of which a function
was called; the depth is that of kvcli's own frames when the attention kernel of prefill is entered. Prints
both and the path.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

import kvcli
from kvcli.cli.app import run

ROOT = Path(kvcli.__file__).parent
KERNELS = ("causal_attention", "attention")


def module(frame: FrameType) -> str | None:
    """The module of kvcli that a frame is in, e.g. ``engine/prefill``; ``None`` if it is another package's."""
    path = Path(frame.f_code.co_filename)
    return str(path.relative_to(ROOT).with_suffix("")) if path.is_relative_to(ROOT) else None


def main() -> None:
    """Run and print."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        text.write_text("The grass is green and the sky is blue. " * 60)
        words = sys.argv[1:] or [str(text), "What is green?"]
        files: set[str] = set()
        path: list[str] = []

        def profile(frame: FrameType, event: str, _argument: Any) -> None:
            if event != "call" or not frame.f_code.co_flags & inspect.CO_OPTIMIZED:
                return  # C functions, module bodies and class bodies
            name = module(frame)
            if name is not None:
                files.add(name)
            elif not path and frame.f_code.co_name in KERNELS and "kvcli_kernels" in frame.f_code.co_filename:
                found: FrameType | None = frame
                crossed = []
                while found is not None:
                    if (where := module(found)) is not None:
                        crossed.append(f"{where} {found.f_code.co_name}")
                    found = found.f_back
                if any(step.startswith("engine/prefill ") for step in crossed):  # not the trial of a model
                    path.extend(reversed(crossed))

        answer = io.StringIO()
        sys.setprofile(profile)
        try:
            with contextlib.redirect_stdout(answer):
                code = run(["ask", "-q", "--no-cache", "-n", "4", "--policy", "keydiff(budget=128)", *words])
        finally:
            sys.setprofile(None)
    for step in path:
        print(f"  {step}")
    print(f"exit code {code}, {len(files)} files of kvcli, {len(path)} frames from main to the attention kernel")


if __name__ == "__main__":
    main()
