"""Token ids of documents and questions, from the model's chat template.

The template is rendered once with two marks and cut there. The document can thus be read, frozen and reused before any
question is known.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from kvcli.errors import ModelError
from kvcli.models.foreign_code import tokenizer_error, tokenizer_failed

# These words matter as much as the policy: after a bare text the model continues the story.
TEXT_INTRO = "I will give you a long text. Remember its facts; I will ask you about them. Text:\n\n"
QUESTION_INTRO = "\n\nEnd of the text. Question: "
ANSWER_RULE = "\nAnswer with the exact words of the text."

_TEXT, _QUESTION = "\x02TEXT\x03", "\x02QUESTION\x03"
_FIRST, _PASSAGES, _REPLY = "\x02FIRST\x03", "\x02PASSAGES\x03", "\x02REPLY\x03"
_PICTURES, _MARK = "\x02PICTURES\x03", re.compile("\x02[A-Z]+[0-9]*\x03")
_IMAGE = "<image>"  # what the templates of models with vision towers write for a picture
# Retrieved passages follow the text as a second text with the same words around it. If the prompt calls them
# passages, the model overlooks them more often (docs/log.md).
PASSAGES_INTRO = "I will give you a text. Remember its facts; I will ask you about them. Text:\n\n"
TEXT_END = "\n\nEnd of the text.\n\n"
# In query-aware prefill (Locret-Q) the question also precedes the text.
QUERY_AWARE_INTRO = f"I will give you a long text. Look for the answer to this question: {_FIRST}\nText:\n\n"

WORKED_EXAMPLES = (
    "Text: The meeting begins in the town hall at noon. Tea is served afterwards.\n"
    "Question: When does the meeting begin?\nAnswer: at noon\n\n"
    "Text: Anna Berg wrote the report for the council.\nQuestion: Who wrote the report?\nAnswer: Anna Berg\n\n"
    "Text: The shop of Karl Lind in Visby was small. It sold bread and cheese to sailors.\n"
    "Question: What did Karl Lind sell in Visby?\nAnswer: bread and cheese\n\n"
)

# A model without a chat template completes texts. Worked examples far before the question confuse it (docs/log.md).
_ABOUT = "Question about this text: "
_PLAIN = {
    TEXT_INTRO: "",
    QUERY_AWARE_INTRO: f"{_ABOUT}{_FIRST}\n\n",
    PASSAGES_INTRO: "",
    TEXT_END: "\n\n",
    QUESTION_INTRO: f"\n\n{_ABOUT}",
    ANSWER_RULE: "",
}
PLAIN_STOPS = ("\n\n", "\nQuestion", "\nAnswer")
"""Where the answer of such a model ends: it would ask and answer on."""

# transformers keeps split_special_tokens as a state of the tokenizer, so two threads would disturb each other.
_TOKENIZER = Lock()


def usual(around: Any, question: str) -> bool:
    """Whether a text ends with a question mark, and ``around`` it (of these names) is nothing of the caller's."""
    plain = not (around.raw or around.system or around.before) and around.after == ANSWER_RULE
    return plain and question.rstrip().endswith(("?", "\uff1f", "\u061f"))


def _template_error() -> ModelError:
    return ModelError("the model's chat template does not pass the message on unchanged", "use --raw")


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


@dataclass(frozen=True)
class Prompt:
    """The prompt format of a model.

    Args:
        tokenizer: a transformers tokenizer.
        system: a system message; ``None`` leaves it to the template.
        raw: no chat template and none of our words: the text, then the question.
        before: text before a question.
        after: text after it. What surrounds a question does not change what is read before it.
        pictures: ids of pictures, which precede the document's text.
        text: whether the document has a text; without, the question follows the pictures.
    """

    tokenizer: Any
    system: str | None = None
    raw: bool = False
    before: str = ""
    after: str = ANSWER_RULE
    pictures: tuple[int, ...] = ()
    text: bool = True

    def with_pictures(self, ids: Sequence[int], *, text: bool) -> Prompt:
        """The prompt of a document with pictures. An answer from a picture has other words than the text."""
        return replace(self, pictures=tuple(ids), text=text, after="" if self.after == ANSWER_RULE else self.after)

    def encode(self, template: str) -> list[int]:
        """Encode template text, in which ``<|im_end|>`` is the special token."""
        return self._encode(template)

    @property
    def plain(self) -> bool:
        """Whether the model has no chat template, so that it completes a text."""
        return not self.raw and not getattr(self.tokenizer, "chat_template", None)

    def document(self, text: str, *, question: str | None = None) -> list[int]:
        """Encode everything up to the end of the text: the input of prefill.

        Args:
            text: the document.
            question: a question to put before the text (query-aware prefill).
        """
        ids, leading_space = self._head(question)
        return ids + self._plain(leading_space + text)

    def _head(self, question: str | None = None) -> tuple[list[int], str]:
        """Return the ids before a document, and our white space that belongs to the document's first token."""
        if self.raw:
            first = [] if question is None else self._plain(question + "\n\n")
            return [*self._encode(self._bos()), *self.pictures, *first], ""
        before = TEXT_INTRO if question is None else QUERY_AWARE_INTRO
        if not self.pictures:
            head, _ = self._cut(before + _TEXT + QUESTION_INTRO + _QUESTION, _TEXT)
            return self._words(head, question)
        opening, rest = self._cut(_PICTURES + (before + _TEXT + QUESTION_INTRO) * self.text + _QUESTION, _PICTURES)
        seen = [*self._encode(opening), *self.pictures]
        if not self.text:
            return seen, ""
        words, leading_space = self._words(rest.partition(_TEXT)[0], question)
        return seen + words, leading_space

    def _words(self, head: str, question: str | None) -> tuple[list[int], str]:
        """Encode template text before a document, and a question in it; return the white space at its end apart."""
        opening, mark, head = head.rpartition(_FIRST)
        words = head.rstrip()
        first = self._template_and_text(opening, question or "") if mark else []
        return first + self._encode(words), head[len(words) :]

    def question(
        self,
        text: str,
        *,
        document: bool = True,
        passages: Sequence[str] = (),
        history: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        """Encode a question and the template's answer prefix.

        Args:
            text: the question.
            document: whether it follows a document; otherwise it opens the conversation.
            passages: passages of the document to repeat before the question.
            history: questions and answers between the document and the question.
        """
        if history:
            *earlier, (asked, reply) = history
            ids = self.question(asked, document=document, history=earlier) + self.reply(reply)
            return ids + self.follow_up(text, passages=passages)
        joined = "\n\n".join(passages)
        if self.raw:
            return ([] if document else self._encode(self._bos())) + self._plain(
                joined + "\n\n" * bool(passages) + text
            )
        if not document:
            before, after = self._cut(_QUESTION, _QUESTION)
            text = self.before + text
            return self._template_and_text(before, text) + self._encode(after)
        if not self.text:
            _, rest = self._cut(_PICTURES + self.before + _QUESTION + self.after, _PICTURES)
            return self._passages_and_question(rest, "", text)
        middle = TEXT_END + PASSAGES_INTRO + _PASSAGES + QUESTION_INTRO if passages else QUESTION_INTRO
        _, rest = self._cut(TEXT_INTRO + _TEXT + middle + self.before + _QUESTION + self.after, _TEXT)
        return self._passages_and_question(rest, joined, text)

    def _passages_and_question(self, template: str, passages: str, question: str) -> list[int]:
        before, _, after = template.partition(_QUESTION)
        opening, mark, before = before.rpartition(_PASSAGES)
        ids = self._template_and_text(opening, passages) if mark else []
        return ids + self._template_and_text(before, question) + self._encode(after)

    def worked_examples(self, passages: Sequence[str], question: str) -> list[int]:
        """Encode a question after passages and three worked examples, without a chat template.

        A small model answers so more often rightly than by its template (docs/log.md). Its answer is one line.

        Args:
            passages: of a document, the likeliest one last.
            question: the question.
        """
        text = " ".join(" ".join(passages).split())
        asked = f"{WORKED_EXAMPLES}Text: {text}\nQuestion: {' '.join(question.split())}\nAnswer:"
        return self._encode(self._bos()) + self._plain(asked)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Return the character range of each id that :meth:`document` makes of a text."""
        _, lead = self._head()
        found = self._tokenized(lead + text, split_special_tokens=True, return_offsets_mapping=True)["offset_mapping"]
        return [(max(0, a - len(lead)), max(0, b - len(lead))) for a, b in found]

    def answer(self, text: str) -> list[int]:
        """Encode an answer as the model would have given it, end of turn included."""
        end = getattr(self.tokenizer, "eos_token", None) or ""
        return self._plain(text) + self._encode(end)

    @property
    def thinks(self) -> bool:
        """Whether the template opens ``<think>`` itself, so that answers begin inside it."""
        return not self.raw and self._cut(_QUESTION, _QUESTION)[1].rstrip().endswith("<think>")

    def no_reasoning(self) -> list[int]:
        """Encode the end of the reasoning that the template opens, if it does: the answer begins at once."""
        return self._encode("</think>\n\n") if self.thinks else []

    def follow_up(self, text: str, *, passages: Sequence[str] = ()) -> list[int]:
        """Encode another question after an answer without its end mark, and the template's answer prefix.

        Args:
            text: the question.
            passages: passages of the document to repeat before it.
        """
        joined = "\n\n".join(passages)
        if self.raw:
            return self._plain("\n\n" + joined + "\n\n" * bool(passages) + text)
        content = PASSAGES_INTRO + _PASSAGES + QUESTION_INTRO + _QUESTION + self.after if passages else _QUESTION
        _, rest = self._cut(_TEXT, _REPLY, {"role": "assistant", "content": _REPLY}, _user(content))
        if _QUESTION not in rest:
            raise _template_error()
        return self._passages_and_question(rest, joined, text)

    def conversation(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """Encode a whole conversation, up to the start of the next answer.

        Args:
            messages: role (``system``, ``user``, ``assistant``) and text of each. A final ``assistant`` message is
                continued.

        Raises:
            ModelError: the template fails, or changes a message.
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
                raise _template_error()
            ids += self._template_and_text(before, text)
        return ids if messages[-1][0] == "assistant" else ids + self._encode(rest)

    def reply(self, text: str) -> list[int]:
        """Encode an answer without its end mark."""
        return self._plain(text)

    def reply_tokens(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Encode an answer without its end mark; also return each token's characters (start, end)."""
        found = self._tokenized(text, split_special_tokens=True, return_offsets_mapping=True)
        return found["input_ids"], found["offset_mapping"]

    def _cut(self, content: str, mark: str, *more: dict[str, str]) -> tuple[str, str]:
        messages = [_user(content), *more]
        if self.system:
            messages.insert(0, {"role": "system", "content": self.system})
        before, found, after = self._render(messages).partition(mark)
        if not found:
            raise _template_error()
        return before, after

    def _render(self, messages: list[dict[str, str]]) -> str:
        if self.plain:
            return self._bos() + self._completed(messages)
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            if not all(mark in text for message in messages for mark in _MARK.findall(message["content"])):
                with suppress(Exception):  # what is missing is said below
                    text = self._render_parts(messages)
        except Exception as error:  # templates are programs and fail in ways of their own
            raise ModelError(f"the model's chat template fails: {error}", "use --raw, or leave out --system") from error
        return str(text)

    def _render_parts(self, messages: list[dict[str, str]]) -> str:
        """Render with a list of parts as each message, as templates of models with vision towers want it."""
        parts = []
        for message in messages:
            words, image = message["content"], [{"type": "image"}]
            shown = image * words.startswith(_PICTURES)
            parts.append({**message, "content": [*shown, {"type": "text", "text": words.removeprefix(_PICTURES)}]})
        text: str = self.tokenizer.apply_chat_template(parts, tokenize=False, add_generation_prompt=True)
        return text.replace(_IMAGE, _PICTURES, 1) if any(_PICTURES in m["content"] for m in messages) else text

    @staticmethod
    def _completed(messages: list[dict[str, str]]) -> str:
        """The messages as a text with questions and answers, up to the next answer."""
        text = ""
        for message in messages:
            content = message["content"]
            for ours, plain in _PLAIN.items():
                content = content.replace(ours, plain)
            if message["role"] == "user":
                text += f"{content if _ABOUT in content else f'Question: {content}'}\nAnswer:"
            else:
                text += f" {content}\n\n" if message["role"] == "assistant" else f"{content}\n\n"
        return text

    def _bos(self) -> str:
        token = getattr(self.tokenizer, "bos_token", None) or ""
        return token if token and (self.tokenizer.add_bos_token or self._begins_with(token)) else ""

    def _begins_with(self, token: str) -> bool:
        """Whether the tokenizer itself puts ``token`` before a text: its post-processor may, without saying so."""
        ids = self.tokenizer("a", verbose=False)["input_ids"]
        return bool(ids[:1] == self._encode(token)[:1] and ids[:1] != self._encode("a")[:1])

    def _template_and_text(self, template: str, text: str) -> list[int]:
        """Encode our words and a text after them, cut before the white space, which belongs to the text's tokens."""
        words = template.rstrip()
        return self._encode(words) + self._plain(template[len(words) :] + text)

    def _encode(self, template: str) -> list[int]:
        """Encode template text, in which ``<|im_end|>`` is the special token."""
        ids: list[int] = self._tokenized(template)["input_ids"]
        return ids

    def _plain(self, text: str) -> list[int]:
        """Encode user text, in which ``<|im_end|>`` is ten letters and ends nothing."""
        ids: list[int] = self._tokenized(text, split_special_tokens=True)["input_ids"]
        return ids

    def _tokenized(self, text: str, **options: Any) -> Any:
        with _TOKENIZER:
            try:
                return self.tokenizer(text, add_special_tokens=False, verbose=False, **options)
            except BaseException as error:
                if tokenizer_failed(error):
                    raise tokenizer_error(error, "the model") from None
                raise
