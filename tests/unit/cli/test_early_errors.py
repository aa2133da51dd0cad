"""What can be refused without a model is refused before torch is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import save_tiny

CODE = """
import json, sys
from kvcli.cli.app import run
codes = [run(args) for args in json.load(sys.stdin)]
print(json.dumps([codes, "torch" in sys.modules]))
"""


def test_errors_that_need_no_model_come_before_torch(tmp_path: Path) -> None:
    note, model = tmp_path / "note.txt", save_tiny(tmp_path / "model")
    note.write_text("The boat leaves at six. " * 4000)
    ask = ["ask", "--no-server", str(note), "When?"]
    runs = {
        4: [
            [*ask, "-m", "no-such-model"],
            [*ask, "-m", str(tmp_path / "nowhere")],
            [*ask, "--heads", str(tmp_path / "no.safetensors")],
            ["chat", str(note), "-m", "no-such-model"],
            ["prefill", str(note), "-m", "no-such-model"],
        ],
        3: [["ask", "--no-server", str(tmp_path / "no.txt"), "When?"], ["chat", str(tmp_path / "no.txt")]],
        2: [
            [*ask, "--device", "gpu"],
            [*ask, "--dtype", "float12"],
            [*ask, "--policy", "nothing"],
            [*ask, "--policy", "full", "--budget", "4"],
            [*ask, "-m", str(model), "--budget", "1B"],
        ],
        6: [[*ask, "-m", str(model), "--policy", "full"]],
    }
    every = [(code, args) for code, group in runs.items() for args in group]
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps([args for _, args in every]),
        capture_output=True,
        text=True,
        check=True,
    )
    codes, torch_imported = json.loads(done.stdout.splitlines()[-1])
    assert codes == [code for code, _ in every], done.stderr
    assert not torch_imported
