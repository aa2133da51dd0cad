"""Everything that a model's directory calls an end ends an answer."""

from types import SimpleNamespace
from typing import Any

from kvcli.models.load import _eos
from tests.e2e.conftest import byte_tokenizer


def module(config: Any = None, generation: Any = None) -> Any:
    inner = SimpleNamespace(eos_token_id=config)
    inner.get_text_config = lambda: inner
    return SimpleNamespace(config=inner, generation_config=SimpleNamespace(eos_token_id=generation))


def test_all_of_them_count() -> None:
    words = byte_tokenizer()  # its template ends an answer with <|end|>, which is its end token too
    end = words.eos_token_id
    assert _eos(module(5, [6, 7]), words) == {5, 6, 7, end}
    words.eos_token = "<|user|>"
    assert _eos(module(), words) == {end, words.eos_token_id}
    words.chat_template = "{{ raise_exception('no') }}"
    assert _eos(module(), words) == {words.eos_token_id}
    words.chat_template = "{% for m in messages %}{{ m['content'] }}. {% endfor %}"
    assert _eos(module(), words) == {words.eos_token_id}
    assert _eos(module(3), None) == {3}
