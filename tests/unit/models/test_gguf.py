"""A GGUF becomes a directory of bf16 safetensors: once, wholly or not at all."""

import shutil
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from kvcli.errors import ModelError, ResourceError
from kvcli.events import Convert
from kvcli.models import gguf, gguf_conversion, resolve
from kvcli.utils import files

from .conftest import run, write_gguf


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny GGUF and a cache in which it has been converted, once for all tests: it takes seconds."""
    folder = tmp_path_factory.mktemp("gguf")
    file = write_gguf(folder / "Tiny.Q8_0.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KVCLI_CACHE_DIR", str(folder / "cache"))
        _, events = run(resolve.resolve(str(file)))
    steps = [event for event in events if isinstance(event, Convert)]
    assert steps[0].done == 0
    assert steps[-1].done == steps[-1].total == 11
    return file, folder / "cache"


@pytest.fixture
def cache(converted: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the cache with the converted model, in use."""
    shutil.copytree(converted[1], tmp_path / "kvcli", dirs_exist_ok=True)
    return tmp_path / "kvcli"


def leftovers(cache: Path) -> list[str]:
    """Everything that is neither a model nor a lock."""
    folder = cache / "models" / resolve.CONVERTER
    return [p.name for p in folder.glob(".*") if p.suffix != ".lock"]


def test_the_second_time_it_is_there(converted: tuple[Path, Path], cache: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copy(converted[0], tmp_path / "elsewhere.gguf")).rename(tmp_path / "Tiny.Q8_0.gguf")
    source, events = run(resolve.resolve(str(moved), offline=True))
    assert events == []
    assert (source.origin, source.licence, source.notes) == ("gguf", "mit", ())
    assert source.path.parent == cache / "models" / resolve.CONVERTER
    assert leftovers(cache) == []


@pytest.mark.usefixtures("cache")
def test_what_the_file_said_survives(converted: tuple[Path, Path]) -> None:
    source, _ = run(resolve.resolve(str(converted[0])))
    config = source.config
    assert config["max_position_embeddings"] == 256
    assert config["rope_parameters"]["rope_theta"] == 100_000
    assert (config["dtype"], config["tie_word_embeddings"]) == ("bfloat16", True)
    assert source.bytes < 2 * gguf.read_header(converted[0]).parameters + 10_000
    assert {p.stat().st_mode & 0o777 for p in source.path.iterdir()} == {0o600}
    assert source.path.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("cache")
def test_weights_are_the_dequantised_ones(converted: tuple[Path, Path]) -> None:
    import numpy as np
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import load_file

    source, _ = run(resolve.resolve(str(converted[0])))
    kept = load_file(source.path / "model.safetensors")
    tensors = {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(converted[0]).tensors}
    down = torch.from_numpy(np.array(tensors["blk.0.ffn_down.weight"])).to(torch.bfloat16)
    assert torch.equal(kept["model.layers.0.mlp.down_proj.weight"], down)
    assert {tensor.dtype for tensor in kept.values()} == {torch.bfloat16}
    # A GGUF of llama has the rows of q and k in pairs (2i, 2i+1); transformers rotates (i, i + d/2).
    paired = torch.from_numpy(np.array(tensors["blk.0.attn_q.weight"])).to(torch.bfloat16)
    halves = paired.reshape(2, 16, 2, 64).transpose(1, 2).reshape(64, 64)
    assert torch.equal(kept["model.layers.0.self_attn.q_proj.weight"], halves)


@pytest.mark.usefixtures("cache")
def test_tokenizer(converted: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    source, _ = run(resolve.resolve(str(converted[0])))
    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    assert (tokenizer.eos_token, tokenizer.model_max_length) == ("<|im_end|>", 256)
    assert tokenizer.tokenize("\n\n12") == ["ĊĊ", "1", "2"]  # GPT-2's rule would tear the two line ends apart
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert text == "<|im_start|>a<|im_end|>"


def test_an_interrupted_conversion_leaves_nothing(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    events = resolve.resolve(str(file))
    assert isinstance(next(events), Convert)
    assert leftovers(tmp_path / "kvcli") != []
    events.close()  # what Ctrl-C comes to
    assert leftovers(tmp_path / "kvcli") == []
    assert not list(tmp_path.glob(f"kvcli/models/*/*/{resolve.CARD}"))


def test_what_a_killed_process_left_is_swept(
    converted: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = run(resolve.resolve(str(converted[0])))
    done = source.path.rename(cache / "done")
    stale = source.path.parent / f".{source.path.name}.tmp-killed"
    (stale / "out").mkdir(parents=True)
    monkeypatch.setattr(gguf, "convert", lambda _file, target, _name: copying(done, target))
    again, _ = run(resolve.resolve(str(converted[0])))
    assert again == source
    assert leftovers(cache) == []


def copying(done: Path, target: Path):  # type: ignore[no-untyped-def]
    """A conversion that has been done before."""
    yield Convert("copy", 0, 1)
    shutil.copytree(done, target)
    return []


def test_a_damaged_conversion_is_named_and_remade_by_pull(
    converted: tuple[Path, Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(converted[0])
    source, _ = run(resolve.resolve(file))
    shutil.copytree(source.path, cache / "done")
    weights = source.path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"damaged file: .*model\.safetensors \(expected .* bytes") as caught:
        run(resolve.resolve(file))
    assert caught.value.hint == f"kvcli models pull {file}"
    monkeypatch.setattr(gguf, "convert", lambda _file, target, _name: copying(cache / "done", target))
    assert run(resolve.resolve(file, refresh=True))[0] == source


@pytest.mark.parametrize("cut", [3, 40, 3000, -20_000])
def test_truncated(tmp_path: Path, cut: int) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(ModelError, match="GGUF"):
        run(resolve.resolve(str(file)))
    assert leftovers(tmp_path / "kvcli") == []


@pytest.mark.parametrize("joined", [False, True])
def test_a_part_of_a_split_model_is_refused_before_a_byte_is_converted(tmp_path: Path, joined: bool) -> None:
    def parts(writer: Any) -> None:
        writer.add_uint16("split.no", 0)
        writer.add_uint16("split.count", 3)

    file = write_gguf(tmp_path / "Tiny-00001-of-00003.gguf", add=parts)
    if joined:
        file = file.rename(tmp_path / "Tiny.gguf")
        file.write_bytes(file.read_bytes() * 2)
    with pytest.raises(ModelError, match="is part 1 of 3 of a model that was split") as caught:
        run(resolve.resolve(str(file)))
    assert ("Tiny-00001-of-00003.gguf" if joined else "Tiny-00002-of-00003.gguf") in caught.value.message
    assert not (tmp_path / "kvcli" / "models").exists()


def test_files_that_were_joined_are_refused(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    file.write_bytes(file.read_bytes() + bytes(2 << 20))
    with pytest.raises(ModelError, match="were files joined"):
        run(resolve.resolve(str(file)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    file.write_bytes(file.read_bytes().replace(b"blk.0.ffn_up", b"blk.7.ffn_up"))
    with pytest.raises(ModelError, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        run(resolve.resolve(str(file)))


STRING, ARRAY = 8, 9


def nested(depth: int) -> bytes:
    return struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", 0, 0)


@pytest.mark.parametrize(
    "entry",
    [
        struct.pack("<I", ARRAY) + nested(100_000),
        struct.pack("<IQ", STRING, 2**40),
        struct.pack("<IIQ", ARRAY, 0, 2**63),
        struct.pack("<IIQ", ARRAY, STRING, 2**63),
    ],
)
def test_a_header_that_asks_for_everything_is_refused_at_once(tmp_path: Path, entry: bytes) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2**60) + struct.pack("<Q", 1) + b"k" + entry)
    began = time.process_time()
    with pytest.raises(ModelError, match="damaged GGUF file"):
        gguf.read_header(file)
    assert time.process_time() - began < 5


def test_not_a_gguf(tmp_path: Path) -> None:
    (tmp_path / "book.gguf").write_text("Call me Ishmael.")
    with pytest.raises(ModelError, match="not a GGUF file"):
        run(resolve.resolve(str(tmp_path / "book.gguf")))
    with pytest.raises(ModelError, match="no such file"):
        run(resolve.resolve(str(tmp_path / "none.gguf")))


def test_an_architecture_that_cannot_be_converted_says_so(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    file.write_bytes(file.read_bytes().replace(b"llama", b"lllll"))
    with pytest.raises(ModelError, match="lllll") as caught:
        run(resolve.resolve(str(file)))
    assert caught.value.hint == "name the model's safetensors instead"
    assert leftovers(tmp_path / "kvcli") == []


def test_a_full_disk_is_refused_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_gguf(tmp_path / "Tiny.gguf")
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(ResourceError, match="0 MiB free"):
        run(resolve.resolve(str(file)))


def test_a_disk_that_fills_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object):  # type: ignore[no-untyped-def]
        yield Convert("x", 0, 1)
        raise OSError(28, "No space left on device")

    file = write_gguf(tmp_path / "Tiny.gguf")
    monkeypatch.setattr(gguf, "convert", full)
    with pytest.raises(ResourceError, match="disk is full"):
        run(resolve.resolve(str(file)))
    assert leftovers(tmp_path / "kvcli") == []


def test_other_weights_have_another_key(tmp_path: Path) -> None:
    one, two = (write_gguf(tmp_path / f"{seed}.gguf", seed=seed) for seed in (0, 1))
    assert one.stat().st_size == two.stat().st_size
    assert gguf.content_key(one) != gguf.content_key(two)


def test_an_unknown_rule_for_splitting_text_is_told() -> None:
    import tokenizers

    class Fast:
        backend_tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())

    Fast.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
    header = gguf.GgufHeader({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "martian"}, 0, 0)
    assert "martian" in gguf_conversion._restore_splitting(Fast(), header)[0]
