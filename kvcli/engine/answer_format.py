"""Answers of a given form: JSON of a schema, one of several texts, or words of a text.

Before each token the grammar of the form says which tokens may come next (llguidance); the others get no probability.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from kvcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

    from kvcli.models.model import Model

# One line: a small model that may write spaces and line ends often writes nothing else.
_LAYOUT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class AnswerFormat:
    """The form of an answer; from :meth:`json_schema`, :meth:`json_object` or :meth:`choices`.

    Attributes:
        grammar: as llguidance reads it.
        rule: what a question says of the form; empty if it says nothing.
    """

    grammar: str
    rule: str = ""

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool) -> AnswerFormat:
        """JSON that a schema allows, on one line. A reference to another file is an error: nothing is fetched.

        Raises:
            UsageError: the schema is not valid, allows nothing, or uses a keyword that is not supported.
        """
        rule = f"\nAnswer in JSON of this schema: {json.dumps(schema, ensure_ascii=False)}"
        whole = schema if isinstance(schema, Mapping) else {"allOf": [schema]}
        return cls._json(dict(whole), rule, "the schema")

    @classmethod
    def json_object(cls) -> AnswerFormat:
        """Any JSON object."""
        return cls._json({"type": "object"}, "\nAnswer with a JSON object.", "the form")

    @classmethod
    def choices(cls, texts: Sequence[str]) -> AnswerFormat:
        """One of several texts.

        Raises:
            UsageError: fewer than two texts, or an empty one.
        """
        if len(set(texts)) < 2 or not all(texts):
            raise UsageError("choices must be at least two different texts, none of them empty", "--choices yes,no")
        lark = "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in dict.fromkeys(texts))
        from llguidance import LLMatcher

        return cls(_checked(LLMatcher.grammar_from_lark(lark), "choices"), f"\nAnswer with one of: {', '.join(texts)}")

    @classmethod
    def _json(cls, schema: dict[str, Any], rule: str, what: str) -> AnswerFormat:
        from llguidance import LLMatcher

        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_LAYOUT)  # type: ignore[arg-type]
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{what} cannot be used: {error}") from None
        return cls(_checked(grammar, what), rule)

    def constraint(self, model: Model) -> Constraint:
        """The state of one answer of this form."""
        return Constraint(self, model)


def _checked(grammar: str, what: str) -> str:
    from llguidance import LLMatcher

    wrong, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    if messages:  # a warning is of a keyword that would be ignored
        raise UsageError(f"{what} cannot be used: {' '.join(messages[0].split())[:300]}") from None
    assert not wrong
    return grammar


class Constraint:
    """Which tokens may come next in one answer.

    Args:
        form: of the answer.
        model: has the tokenizer.

    Raises:
        UsageError: the schema allows nothing.
    """

    def __init__(self, form: AnswerFormat, model: Model) -> None:
        from llguidance import LLMatcher

        self._matcher = LLMatcher(_tokenizer(model), form.grammar, log_level=0)
        self._raise_errors()

    def mask(self, logits: Tensor) -> Tensor:
        """Logits ``[vocab]``, in which tokens that may not come next are minus infinity.

        Raises:
            InputError: the grammar is too complex.
        """
        return logits.masked_fill(~self._allowed(logits), float("-inf"))

    def push(self, token: int) -> bool:
        """Add a token; returns whether the answer is complete and nothing may follow."""
        self._matcher.consume_token(token)
        self._raise_errors()
        return self._matcher.is_stopped()

    def _allowed(self, logits: Tensor) -> Tensor:
        import numpy as np
        import torch

        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._raise_errors()
        allowed = np.unpackbits(bits, bitorder="little")[: logits.shape[0]]
        found = torch.from_numpy(allowed).to(logits.device).bool()
        missing = logits.shape[0] - found.shape[0]  # rows of the output layer that are no tokens
        return torch.nn.functional.pad(found, (0, missing)) if missing > 0 else found

    def _raise_errors(self) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().split())[:300]
            raise InputError(f"an answer of this form cannot be written: {reason}", "a simpler schema")


_TOKENIZERS: WeakKeyDictionary[Module, Any] = WeakKeyDictionary()


def _tokenizer(model: Model) -> Any:
    """The vocabulary as llguidance reads it; half a second for 50,000 tokens, and then kept."""
    from llguidance import LLTokenizer

    found = _TOKENIZERS.get(model.module)
    if found is None:
        backend = model.tokenizer._tokenizer
        end = sorted(model.eos) or None
        found = _TOKENIZERS[model.module] = LLTokenizer(backend.to_str(), eos_token=end)
    return found
