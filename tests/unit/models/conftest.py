"""Tiny models and a hub on localhost; nothing here touches the user's caches or a network."""

import json
import threading
from collections.abc import Callable, Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import pytest

from kvcli.events import Event
from kvcli.models import default_model

T = TypeVar("T")


def run(events: Generator[Event, None, T]) -> tuple[T, list[Event]]:
    """What a generator of events returns, and the events."""
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return end.value, seen


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """Empty caches, and a hub that must not be asked. Real tests keep KVCLI_CACHE_DIR where it is set."""
    import huggingface_hub.constants

    real = request.node.get_closest_marker("real") is not None
    if not real:
        monkeypatch.setenv("KVCLI_CACHE_DIR", str(tmp_path / "kvcli"))
        monkeypatch.setattr(default_model, "installed", lambda: None)
    monkeypatch.delenv("KVCLI_MODEL", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    return tmp_path


def make_model(path: Path, seed: int = 0, shards: bool = False) -> Path:
    """A random two-layer Llama with a tokenizer of five words, as save_pretrained writes it."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(path, max_shard_size="20KB" if shards else "1GB")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "b": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_model(tmp_path / "tiny")


class Hub:
    """As much of a hub as the client asks of one: repositories by name, each a folder."""

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requests: list[str] = []
        self.commit = "c" * 40

    def serve(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.split("?")[0]
        self.requests.append(f"{handler.command} {path}")
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            if repo not in self.repos:
                return self.refuse(handler, 401, "RepoNotFound")
            files = [p for p in sorted(self.repos[repo].rglob("*")) if p.is_file()]
            siblings = [{"rfilename": str(p.relative_to(self.repos[repo])), "size": p.stat().st_size} for p in files]
            about = {"id": repo, "sha": self.commit, "siblings": siblings, "gated": repo in self.gated}
            return self.answer(handler, json.dumps(about).encode(), {"Content-Type": "application/json"})
        _, owner, name, _resolve, _revision, *rest = path.split("/")
        repo = f"{owner}/{name}"
        if repo in self.gated:
            return self.refuse(handler, 401 if "Authorization" not in handler.headers else 403, "GatedRepo")
        file = self.repos[repo] / "/".join(rest)
        if not file.is_file():
            return self.refuse(handler, 404, "EntryNotFound")
        content = file.read_bytes()
        tag = f'"{abs(hash(content)):040x}"'
        return self.answer(handler, content, {"ETag": tag, "X-Repo-Commit": self.commit})

    def answer(self, handler: BaseHTTPRequestHandler, body: bytes, headers: dict[str, str]) -> None:
        handler.send_response(200)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    def refuse(self, handler: BaseHTTPRequestHandler, status: int, code: str) -> None:
        handler.send_response(status)
        handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on localhost."""
    import huggingface_hub.constants as constants

    served = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.serve(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    yield served
    server.shutdown()
    server.server_close()


def write_gguf(
    path: Path, *, seed: int = 0, licence: str = "mit", add: Callable[[Any], None] = lambda _writer: None
) -> Path:
    """A random one-layer llama in Q8_0 whose byte-level tokenizer keeps digits apart, as SmolLM2's does.

    ``add`` gets the writer and may add keys and tensors.
    """
    import gguf
    import numpy as np
    from tokenizers.pre_tokenizers import ByteLevel

    random = np.random.default_rng(seed)
    hidden, inner, heads, kv_heads = 64, 96, 2, 1
    alphabet = sorted(ByteLevel.alphabet())
    merges = ["Ċ Ċ", "Ġ Ġ"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, *(m.replace(" ", "") for m in merges)]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license(licence)
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_freq_base(100_000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    sizes = {
        "token_embd": (len(tokens), hidden),
        "blk.0.attn_q": (hidden, hidden),
        "blk.0.attn_k": (hidden // heads * kv_heads, hidden),
        "blk.0.attn_v": (hidden // heads * kv_heads, hidden),
        "blk.0.attn_output": (hidden, hidden),
        "blk.0.ffn_gate": (inner, hidden),
        "blk.0.ffn_up": (inner, hidden),
        "blk.0.ffn_down": (hidden, inner),
    }
    packed = gguf.GGMLQuantizationType.Q8_0
    for name, shape in sizes.items():
        values = gguf.quantize(random.normal(size=shape).astype(np.float32), packed)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=packed)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(hidden, dtype=np.float32))
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
