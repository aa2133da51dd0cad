"""The library object: read documents once, then ask them many questions.

    model = kvcli.load_model("smollm2-135m")
    pipeline = kvcli.Pipeline(model, recipe="locret(budget=4096)", cache=kvcli.CacheDirectory.default())
    context = pipeline.prefill(kvcli.read_document("book.txt"))
    print(pipeline.answer(context, "Who tells the story?").text)

The command line, chats, evaluation and benchmarks call this object. Nothing here prints, and no attribute is set after
``__init__``, so several threads may share one pipeline or one model. Contexts are immutable, and each answer has a
decode cache of its own. The model takes one forward pass at a time.
"""

from kvcli.pipeline.loading import load_model, read_document
from kvcli.pipeline.pipeline import Pipeline
from kvcli.pipeline.results import AnswerResult, Citations, DocumentContext, RecipeChoice, TokenizedDocument, Usage

__all__ = [
    "AnswerResult",
    "Citations",
    "DocumentContext",
    "Pipeline",
    "RecipeChoice",
    "TokenizedDocument",
    "Usage",
    "load_model",
    "read_document",
]
