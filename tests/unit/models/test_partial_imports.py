"""kvcli's own processes import transformers without what they never use, and compute what a plain import does."""

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest

import kvcli
from kvcli.models import partial_imports
from tests.e2e.conftest import save_tiny

PROGRAM = """
import json, sys
import torch
from kvcli.models import partial_imports
partial_imports.install()
import kvcli
model = kvcli.load_model(sys.argv[1], device="cpu", dtype="float32")
compiled = "torch._dynamo" in sys.modules
pipeline = kvcli.Pipeline(model, "full")
context = pipeline.prefill(kvcli.read_document(sys.argv[2]))
answer = pipeline.answer(context, "Where?", max_tokens=9).text
import torch._dynamo
stood_in = [name for name, module in sys.modules.items() if type(module).__module__ == "kvcli.models.partial_imports"]
real = torch._dynamo.is_compiling() is False and torch._dynamo is sys.modules["torch._dynamo"]
parameter = torch.nn.Parameter(torch.ones(2))
parameter.grad = torch.ones(2)
torch.optim.AdamW([parameter], lr=0.5).step()
print(json.dumps([compiled, answer, stood_in, real, parameter.tolist()]))
"""


def test_the_same_answer_without_the_compiler(tmp_path: Path) -> None:
    folder, text = save_tiny(tmp_path / "tiny"), tmp_path / "a.txt"
    text.write_text("The keeper has left the key under the third stone. " * 9)
    command = [sys.executable, "-c", PROGRAM, str(folder), str(text)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    compiler, answer, without_compiler, real, parameter = json.loads(done.stdout)
    assert not compiler
    assert (without_compiler, real) == ([], True)  # what is imported later is the real thing
    assert parameter != [1, 1]
    pipeline = kvcli.Pipeline(kvcli.load_model(str(folder), device="cpu", dtype="float32"), "full")
    assert answer == pipeline.answer(pipeline.prefill(kvcli.read_document(text)), "Where?", max_tokens=9).text


def test_a_library_leaves_imports_alone() -> None:
    assert "kvcli.pipeline" in sys.modules
    assert not any(type(finder).__module__ == partial_imports.__name__ for finder in sys.meta_path)


class _Strange:
    """A loader of a module that cannot be imported with stand-ins."""

    def __init__(self) -> None:
        self.calls = 0

    def create_module(self, spec: ModuleSpec) -> None: ...

    def exec_module(self, module: ModuleType) -> None:
        self.calls += 1
        sys.modules[f"transformers.half_{self.calls}"] = ModuleType("half")
        if self.calls == 1:
            raise AttributeError("no such name")
        module.done = True  # type: ignore[attr-defined]


def test_an_import_that_fails_is_made_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    strange, module = _Strange(), ModuleType("transformers.strange")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    partial_imports._Loader(strange).exec_module(module)  # type: ignore[arg-type]
    assert module.done
    assert strange.calls == 2
    assert "transformers.half_1" not in sys.modules
    assert "transformers.half_2" in sys.modules


POSTPONED = """
import json, sys
from kvcli.models import partial_imports
partial_imports.install()
import torch
torch.Generator().manual_seed(0)
def missing():
    return [name for name in partial_imports._META if isinstance(sys.modules[name], partial_imports._Postponed)]
def without_data():
    return list(torch.linalg.pinv(torch.empty(3, 2, device="meta")).shape)
said = [len(missing()), "torch._decomp" in sys.modules]
{need}
said += [len(missing()), without_data(), partial_imports.complete()]
print(json.dumps(said))
"""


@pytest.mark.parametrize(
    "need",
    [
        "partial_imports.complete()",
        "import torch._decomp",
        "from torch._meta_registrations import meta_index_Tensor",
        "import torch._dynamo",
    ],
)
def test_operations_without_data_are_imported_when_they_are_needed(need: str) -> None:
    command = [sys.executable, "-c", POSTPONED.replace("{need}", need)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [2, False, 0, [2, 3], False]
