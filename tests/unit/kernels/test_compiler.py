"""What numba compiles is found again by the next process, and only where kvcli put it.

A ``.numba_config.yaml`` in the working directory decides nothing: it could name a folder of pickled code.
"""

import gc
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numba.core.dispatcher import Dispatcher

from kvcli_kernels import compiler
from kvcli_kernels.backend import for_cpu

PROGRAM = """
from numba.core import config
from kvcli_kernels.backend import for_cpu
import torch
cpu = for_cpu("linear")
assert cpu is not None
config.reload_config()  # as every compilation does
assert not config.CACHE_DIR and not config.DISABLE_JIT, config.CACHE_DIR
print(cpu.linear(torch.ones(1, 64), torch.ones(64, 64, dtype=torch.bfloat16)).sum().item())
"""


def test_the_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / ".numba_config.yaml").write_text("cache_dir: ./planted\ndisable_jit: 1\n")
    command = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout == "4096.0\n", done.stderr
    assert not (tmp_path / "planted").exists()


ATTEND = """
import torch
from kvcli_kernels.attention import cpu
for dtype in (torch.float32, torch.bfloat16):
    q, k = torch.ones(2, 1, 16, dtype=dtype), torch.ones(1, 70, 16, dtype=dtype)
    with torch.no_grad():
        cpu.attention(q, k, k, 0.25)
"""
MISSES = "print(sum(sum(f.stats.cache_misses.values()) for f in (cpu.team_loop._work, cpu.team_loop._run)))"


def test_the_next_process_compiles_nothing() -> None:
    exec(ATTEND, {})
    command, said = [sys.executable, "-c", ATTEND + MISSES], ""
    for _ in range(3):  # another worker of these tests may have written numba's index at the same time
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        if (said := done.stdout) == "0\n":
            break
    assert said == "0\n"


CALLER = """
from kvcli_kernels.compiler import nearest, njit

@njit(cache=True)
def call(x):
    return nearest(x)

print(call(1.0), sum(call.stats.cache_hits.values()))
"""


def test_a_change_in_a_file_of_what_it_calls_compiles_it_anew(tmp_path: Path) -> None:
    shutil.copytree(Path(compiler.__file__).parent, tmp_path / "kvcli_kernels", ignore=shutil.ignore_patterns("__py*"))
    (tmp_path / "caller.py").write_text(CALLER)
    said = []
    for change in (None, None, ("return np.uint16(0x7FC0)", "return np.uint16(7)\n    return np.uint16(7)")):
        file = tmp_path / "kvcli_kernels" / "compiler.py"
        if change is not None:
            file.write_text(file.read_text().replace(*change))
        command = [sys.executable, "-c", "import caller"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
        said.append(done.stdout)
    assert said == ["16256 0\n", "16256 1\n", "7 0\n"]


def test_no_kernel_is_a_closure_over_more_than_numbers() -> None:
    # numba keeps compiled closures by the pickle of what they close over; that of a function differs by process
    for operation, module in (
        ("attention", "cpu"),
        ("linear", "cpu"),
        ("linear", "packed"),
        ("packed_attention", "cpu"),
    ):
        kernels = for_cpu(operation, module)
        assert kernels is not None
    kernels._logits(4, 0, 0, 1, True), kernels._weighted(4, 0, 1, True)
    gc.unfreeze()  # tests/conftest.py has frozen what was imported, and frozen objects are not listed
    compiled = [x for x in gc.get_objects() if issubclass(type(x), Dispatcher) and "kvcli" in x.py_func.__module__]
    gc.freeze()
    assert len(compiled) >= 8
    for kernel in compiled:
        cells = [cell.cell_contents for cell in kernel.py_func.__closure__ or ()]
        assert all(isinstance(value, int | float | np.number) for value in cells), kernel.py_func
