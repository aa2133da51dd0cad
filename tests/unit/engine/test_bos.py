"""The token that begins a text, whoever adds it: a flag of the tokenizer, or its post-processor without one."""

import pytest
from tokenizers.processors import TemplateProcessing

from kvcli.engine.prompt import Prompt
from tests.e2e.conftest import byte_tokenizer


@pytest.mark.parametrize("adds", [False, True])
def test_raw_text_begins_as_the_tokenizer_begins_it(adds: bool) -> None:
    words = byte_tokenizer()
    words.bos_token = "<|user|>"
    if adds:
        mark = ("<|user|>", words.bos_token_id)
        words.backend_tokenizer.post_processor = TemplateProcessing(single="<|user|> $A", special_tokens=[mark])
    prompt = Prompt(words, raw=True)
    expected = words("Hello there")["input_ids"]
    assert (expected[0] == words.bos_token_id) is adds
    assert prompt.question("Hello there", document=False) == expected
    assert prompt.document("Hello there") == expected
    assert prompt.question("Hello there") == expected[adds:]
