"""From a text and a question to token ids: what is read, and what is asked behind it.

The model's own chat template is rendered once with two marks in it and cut there, so that the document can be read,
frozen and reused before any question is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

from kvcli.errors import ModelError

# Words around the text. They decide as much as the policy does: with a bare text the model goes on telling the story.
BEFORE = "I will give you a long text. Remember its facts; I will ask you about them. Text:\n\n"
BEHIND = "\n\nEnd of the text. Question: "
ANSWER = "\nAnswer with the exact words of the text."

_TEXT, _QUESTION = "\x02TEXT\x03", "\x02QUESTION\x03"
_FOCUS, _AGAIN, _REPLY = "\x02FOCUS\x03", "\x02AGAIN\x03", "\x02REPLY\x03"
# Passages that are read again behind the text, where there is a second look: a text of their own, with the same words
# around it. Announced as passages they are overlooked more often (docs/log.md).
AGAIN = "I will give you a text. Remember its facts; I will ask you about them. Text:\n\n"
END = "\n\nEnd of the text.\n\n"
# The same where the question is known before the text is read (Locret-Q): it also stands in front.
BEFORE_FOCUS = f"I will give you a long text. Look for the answer to this question: {_FOCUS}\nText:\n\n"

# transformers keeps split_special_tokens as a state of the tokenizer, so two threads would disturb each other.
_TOKENIZER = Lock()


def _changed() -> ModelError:
    return ModelError("the model's chat template does not pass the message on unchanged", "use --raw")


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@dataclass(frozen=True)
class Prompt:
    """How a model wants to be spoken to.

    Args:
        tokenizer: a transformers tokenizer.
        system: a system message; ``None`` leaves it to the template.
        raw: no chat template and no words of ours: the text, then the question.
    """

    tokenizer: Any
    system: str | None = None
    raw: bool = False

    def document(self, text: str, *, focus: str | None = None) -> list[int]:
        """Ids of everything up to the end of the text; this is what a reading reads.

        Args:
            text: the document.
            focus: the question, to stand before the text as well; the reading is then for this question alone.
        """
        ids, lead = self._head(focus)
        return ids + self._plain(lead + text)

    def _head(self, focus: str | None = None) -> tuple[list[int], str]:
        """Ids that stand before a document, and the white space of ours that belongs to the document's first token."""
        if self.raw:
            return self._encode(self._bos()) + ([] if focus is None else self._plain(focus + "\n\n")), ""
        before = BEFORE if focus is None else BEFORE_FOCUS
        head, _ = self._cut(before + _TEXT + BEHIND + _QUESTION + ANSWER, _TEXT)
        opening, found, head = head.rpartition(_FOCUS)
        words = head.rstrip()
        return (self._opened(opening, focus or "") if found else []) + self._encode(words), head[len(words) :]

    def question(self, text: str, *, document: bool = True, again: Sequence[str] = ()) -> list[int]:
        """Ids of the question and of the turn to answer.

        Args:
            text: the question.
            document: whether it stands behind a document or opens the conversation.
            again: passages of the document to stand between it and the question once more.
        """
        shown = "\n\n".join(again)
        if self.raw:
            return ([] if document else self._encode(self._bos())) + self._plain(shown + "\n\n" * bool(again) + text)
        if not document:
            before, behind = self._cut(_QUESTION, _QUESTION)
            return self._opened(before, text) + self._encode(behind)
        middle = END + AGAIN + _AGAIN + BEHIND if again else BEHIND
        _, rest = self._cut(BEFORE + _TEXT + middle + _QUESTION + ANSWER, _TEXT)
        before, _, behind = rest.partition(_QUESTION)
        opening, found, before = before.rpartition(_AGAIN)
        ids = self._opened(opening, shown) if found else []
        return ids + self._opened(before, text) + self._encode(behind)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Of each id that :meth:`document` makes of a text, the characters that it stands for."""
        _, lead = self._head()
        found = self._tokenized(lead + text, split_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
        return [(max(0, a - len(lead)), max(0, b - len(lead))) for a, b in found]

    def answer(self, text: str) -> list[int]:
        """Ids of an answer as the model would have given it, up to the end of its turn."""
        end = getattr(self.tokenizer, "eos_token", None) or ""
        return self._plain(text) + self._encode(end)

    @property
    def thinks(self) -> bool:
        """Whether the template opens ``<think>`` itself, so that an answer begins within."""
        return not self.raw and self._cut(_QUESTION, _QUESTION)[1].rstrip().endswith("<think>")

    def follow(self, text: str, *, again: Sequence[str] = ()) -> list[int]:
        """Ids of a further question behind an answer whose end mark the model has not written, and of its turn.

        Args:
            text: the question.
            again: passages of the document to stand before it.
        """
        shown = "\n\n".join(again)
        if self.raw:
            return self._plain("\n\n" + shown + "\n\n" * bool(again) + text)
        said = AGAIN + _AGAIN + BEHIND + _QUESTION + ANSWER if again else _QUESTION
        _, rest = self._cut(_TEXT, _REPLY, {"role": "assistant", "content": _REPLY}, _user(said))
        before, found, behind = rest.partition(_QUESTION)
        if not found:
            raise _changed()
        opening, found, before = before.rpartition(_AGAIN)
        ids = self._opened(opening, shown) if found else []
        return ids + self._opened(before, text) + self._encode(behind)

    def conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a whole conversation, up to where the next answer begins.

        Args:
            messages: role (``system``, ``user``, ``assistant``) and text of each. An ``assistant`` message at the end
                is continued.

        Raises:
            ModelError: the template fails, or does not pass each message on unchanged.
        """
        if self.raw:
            return self._encode(self._bos()) + self._plain("\n\n".join(text for _, text in messages))
        marks = [f"\x02MESSAGE{i}\x03" for i in range(len(messages))]
        marked = [{"role": role, "content": mark} for (role, _), mark in zip(messages, marks, strict=True)]
        rest = self._render(marked)
        ids: list[int] = []
        for mark, (_, text) in zip(marks, messages, strict=True):
            before, found, rest = rest.partition(mark)
            if not found:
                raise _changed()
            ids += self._opened(before, text)
        return ids if messages[-1][0] == "assistant" else ids + self._encode(rest)

    def reply(self, text: str) -> list[int]:
        """Ids of an answer's text, without an end mark."""
        return self._plain(text)

    def _cut(self, content: str, mark: str, *more: dict[str, str]) -> tuple[str, str]:
        messages = [_user(content), *more]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        before, found, behind = self._render(messages).partition(mark)
        if not found:
            raise _changed()
        return before, behind

    def _render(self, messages: list[dict[str, str]]) -> str:
        if not getattr(self.tokenizer, "chat_template", None):
            return self._bos() + "\n\n".join(m["content"] for m in messages) + "\n\nAnswer:"
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates are programs and fail in ways of their own
            raise ModelError(f"the model's chat template fails: {error}", "use --raw, or leave out --system") from error
        return str(text)

    def _bos(self) -> str:
        token = getattr(self.tokenizer, "bos_token", None) or ""
        return token if token and (self.tokenizer.add_bos_token or self._begins_with(token)) else ""

    def _begins_with(self, token: str) -> bool:
        """Whether the tokenizer itself puts ``token`` before a text: its post-processor may, without saying so."""
        ids = self.tokenizer("a", verbose=False)["input_ids"]
        return bool(ids[:1] == self._encode(token)[:1] and ids[:1] != self._encode("a")[:1])

    def _opened(self, template: str, text: str) -> list[int]:
        """Ids of our words and a text behind them, cut before the white space, which belongs to the text's tokens."""
        words = template.rstrip()
        return self._encode(words) + self._plain(template[len(words) :] + text)

    def _encode(self, template: str) -> list[int]:
        """Ids of our own words, in which ``<|im_end|>`` is the special token."""
        ids: list[int] = self._tokenized(template)["input_ids"]
        return ids

    def _plain(self, text: str) -> list[int]:
        """Ids of somebody's text, in which ``<|im_end|>`` is ten letters and ends nothing."""
        ids: list[int] = self._tokenized(text, split_special_tokens=True)["input_ids"]
        return ids

    def _tokenized(self, text: str, **options: Any) -> Any:
        with _TOKENIZER:
            return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
