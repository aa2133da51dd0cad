"""A model's tokenizer and chat template without torch and transformers, to count tokens before a model is loaded.

It has the methods of a transformers tokenizer that :class:`kvcli.engine.prompt.Prompt` uses, and gives the same ids;
tests compare both.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from kvcli.errors import ModelError
from kvcli.models.foreign_code import TRIAL, one_error

_CONFIG = "tokenizer_config.json"


class FileTokenizer:
    """The tokenizer in a model's directory.

    Args:
        directory: with ``tokenizer.json``, and possibly ``tokenizer_config.json`` and a chat template.

    Raises:
        ModelError: there is no ``tokenizer.json``, or it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelError(
                f"{directory} has no tokenizer.json, and only loading the model would tell how many tokens a text has",
                "kvcli ask … --stats",
            )
        with one_error(directory):
            self._tokenizer = Tokenizer.from_file(str(path))
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._tokenizer.encode(TRIAL)
        config: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            config = json.loads((directory / _CONFIG).read_bytes())
        self.bos_token = _text(config.get("bos_token"))
        self.eos_token = _text(config.get("eos_token"))
        self._special = {
            name: token
            for name in ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
            if (token := _text(config.get(name))) is not None
        }
        self.add_bos_token = bool(config.get("add_bos_token", False))
        self.chat_template = _template(directory, config)

    def __call__(
        self, text: str, *, split_special_tokens: bool = False, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, list[int]]:
        """Ids of a text; with ``split_special_tokens`` special tokens in it are plain letters."""
        self._tokenizer.encode_special_tokens = split_special_tokens
        return {"input_ids": self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool = False,  # noqa: ARG002  # the name is transformers'
        add_generation_prompt: bool = True,
    ) -> str:
        """The messages as the model's own template writes them; raises whatever the template raises."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def fail(message: str) -> None:
            raise TemplateError(message)

        def to_json(value: Any, **options: Any) -> str:
            return json.dumps(value, **{"ensure_ascii": False, **options})

        def today(pattern: str) -> str:
            return datetime.now().strftime(pattern)

        room = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        room.filters["tojson"] = to_json
        room.globals |= {"raise_exception": fail, "strftime_now": today}
        template = room.from_string(self.chat_template or "")
        return template.render(
            messages=messages,
            tools=None,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **self._special,
        )


def _text(token: Any) -> str | None:
    """A token of a config, which may be a text or an object with one inside."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _template(directory: Path, config: dict[str, Any]) -> str | None:
    with suppress(OSError):
        return (directory / "chat_template.jinja").read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {t.get("name"): t.get("template") for t in found if isinstance(t, dict)}
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else None
