"""Where a figure comes from: command, date, machine and number of cases, as fields of a row."""

from __future__ import annotations

import datetime
import os
import re
from pathlib import Path
from typing import Any

import torch

_EXTENSIONS = ("amx_tile", "avx512_bf16", "avx512f", "avx2")


def machine() -> str:
    """The machine's name in ``docs/results/data/machines.jsonl``: processor, cores, widest vector extension, GPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags, model = set(text.split()), re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    parts = [model[1] if model else "cpu", str(os.cpu_count()), next((e for e in _EXTENSIONS if e in flags), "")]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return "-".join(re.sub(r"[^a-z0-9]+", "", part.lower()) for part in parts if part)


def provenance(command: str, *, n: int) -> dict[str, Any]:
    """The fields that every row of ``docs/results/data`` ends with; ``n`` is the number of cases or repeats."""
    return {"n": n, "command": command, "date": datetime.date.today().isoformat(), "machine": machine()}
