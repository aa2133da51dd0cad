"""A ``.numba_config.yaml`` in the working directory decides nothing: it could name a folder of pickled code."""

import subprocess
import sys
from pathlib import Path

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
