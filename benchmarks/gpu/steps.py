"""What is run on a GPU, in the order of what it can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LOCRET = "locret(budget=16384, stabilizers=2048)"
SMALL = "locret(budget=6000, stabilizers=2048)"
WIDE = "locret(budget=32768, stabilizers=2048)"
FOUR, CODES = "+kivi(bits=4)", "+turbo(bits=4, fill=true)"
HOST = ("quest", "infllm", "shadowkv(rank=160)", "infinigen")

KERNELS = (
    "tests/unit/kernels/test_attention.py",
    "tests/unit/kernels/test_compact.py",
    "tests/unit/kernels/test_merge.py",
    "tests/unit/kernels/test_varlen.py",
    "tests/unit/kernels/test_packed.py",
    "tests/unit/kernels/test_packed_triton.py",
    "tests/unit/kernels/test_dispatch.py",
    "tests/unit/cache/test_workspace.py",
    "tests/unit/engine/test_decode_step.py",
    "tests/unit/storage/test_infinigen.py",
    "tests/laws/test_decode_step.py",
)
"""Files with tests that use a GPU if there is one. Each has a process of its own, so one that hangs ends alone."""

COMMANDS = ("tests/unit/test_pipeline.py", "tests/e2e/cli/test_ask.py")
"""What people run, with small models. Without ``--device`` they run on a GPU if there is one."""


@dataclass(frozen=True)
class Step:
    """One process, or one for each of several files of tests.

    Attributes:
        module: what ``python -m`` runs; it writes rows (:mod:`benchmarks.gpu.output`).
        words: its arguments.
        limit: seconds after which it is ended.
        tests: files of tests, each run by itself; then there is no module.
        rehearsal: the arguments with which the CPU acts it out.
    """

    name: str
    module: str = ""
    words: Sequence[str] = ()
    limit: int = 120
    tests: Sequence[str] = ()
    rehearsal: Sequence[str] = ()

    def command(self, *, rehearse: bool = False) -> list[str]:
        """Arguments of Python."""
        return ["-m", self.module, *(self.rehearsal if rehearse else self.words)]


def measure(shape: str, *rows: str, weights: str = "bf16", gpu: int = 0, more: Sequence[str] = ()) -> Sequence[str]:
    return [*rows, "--shape", shape, "--weights", weights, "--gpu", str(gpu), *more]


TINY = ("--shape", "tiny", "--device", "cpu", "--dtype", "float32", "--chunk", "64", "--answer", "4")
TRAINING = ("--text", "docs/log.md", "--tokenizer", "build/gpu/tokenizer")
ACTED = ("locret(budget=64)@200", "transformers@200", *TINY)

STEPS: Sequence[Step] = (
    Step("doctor", "kvcli", ["doctor", "--json"], limit=60, rehearsal=["doctor", "--json"]),
    Step(
        "recipes", "benchmarks.gpu.contact", limit=150, rehearsal=["--device", "cpu", "--recipes", "full", "full+int8"]
    ),
    Step("kernels", tests=KERNELS, limit=100),
    Step("command line", tests=COMMANDS, limit=100),
    Step(
        "8B",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", f"{LOCRET}@8K", f"{LOCRET}@128K", f"{LOCRET}{FOUR}@128K", gpu=24),
        rehearsal=ACTED,
    ),
    Step(
        "8B beside transformers",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", "transformers@8K", f"{LOCRET}@8K", "transformers@128K", f"{LOCRET}@128K", "full@128K"),
        limit=150,
        rehearsal=ACTED,
    ),
    Step(
        "profile",
        "benchmarks.gpu.profile",
        ["--shape", "llama-3.1-8b", "--recipe", LOCRET, "--tokens", "64K"],
        limit=60,
        rehearsal=["--recipe", "locret(budget=64)", "--tokens", "200", *TINY[:-2]],
    ),
    Step(
        "8B nf4 on 8 GB",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", f"{SMALL}{FOUR}@128K", f"{LOCRET}{CODES}@128K", weights="nf4", gpu=8),
        limit=150,
        rehearsal=["keydiff(budget=64)@200", *TINY, "--weights", "nf4"],
    ),
    Step(
        "host memory",
        "benchmarks.offload_speed",
        ["--shape", "llama-3.1-8b", "--tokens", "64K", "--recipes", *HOST],
        limit=200,
        rehearsal=[*TINY[:-4], "--tokens", "300", "--rounds", "1", "--recipes", "infinigen"],
    ),
    Step(
        "graph",
        "benchmarks.gpu.measure",
        measure(
            "llama-3.1-8b",
            *(
                f"{graph}{recipe}@32K"
                for recipe in (LOCRET, LOCRET + FOUR, "full+shadowkv(rank=160)")
                for graph in ("", "graph:")
            ),
        ),
        limit=150,
        rehearsal=["graph:locret(budget=64)@200", *TINY],
    ),
    Step(
        "costs",
        "benchmarks.gpu.measure",
        measure(
            "llama-3.1-8b",
            "streaming(budget=16384)@64K",
            f"{LOCRET}@64K",
            f"{LOCRET[:-1]}, victims=merge)@64K",
            f"{LOCRET[:-1]}, victims=match)@64K",
            f"{LOCRET}{FOUR}@64K",
            more=["--repeat", "3"],
        ),
        limit=150,
        rehearsal=ACTED,
    ),
    Step(
        "8B, a million",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", f"{LOCRET}@1M", gpu=24),
        limit=240,
        rehearsal=ACTED,
    ),
    Step(
        "training",
        "benchmarks.training_step",
        [*TRAINING, "--shape", "benchmarks/gpu/shapes/llama-3.1-8b", "--device", "cuda:0", "--steps", "5"],
        rehearsal=[*TRAINING, "--shape", "benchmarks/gpu/shapes/tiny", "--steps", "1", "--tokens", "300"],
    ),
    Step(
        "mini",
        "benchmarks.gpu.measure",
        measure("phi-3-mini", f"{SMALL}@128K", f"{SMALL}{FOUR}@128K", "transformers@128K", gpu=0),
        limit=120,
        rehearsal=ACTED,
    ),
    Step(
        "mini nf4 on 8 GB",
        "benchmarks.gpu.measure",
        measure("phi-3-mini", f"{SMALL}{FOUR}@128K", weights="nf4", gpu=8),
        rehearsal=ACTED,
    ),
    Step(
        "8B, fill in codes",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", f"{WIDE}@128K", f"{WIDE}{CODES}@128K", gpu=24),
        rehearsal=ACTED,
    ),
    Step(
        "8B nf4, a million on 8 GB",
        "benchmarks.gpu.measure",
        measure("llama-3.1-8b", f"{SMALL}{FOUR}@1M", weights="nf4", gpu=8),
        limit=300,
        rehearsal=ACTED,
    ),
)
