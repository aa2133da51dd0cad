"""A document goes to the machine that has its prefill, the largest first; nothing is lost or given out twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvcli.corpus.schedule import Schedule
from kvcli.corpus.task import DocumentTask, Question

QUESTION = Question("Who?")
SIZES = dict(zip("abcdefgh", (3, 1, 4, 1, 5, 9, 2, 6), strict=True))


def task(name: str) -> DocumentTask:
    return DocumentTask(name, name, (QUESTION,), (f"key {name}",), f"failure {name}", size=SIZES[name])


NAMES = st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1)
HELD = st.dictionaries(st.sampled_from(["one", "two", "three"]), st.sets(st.sampled_from("abcdefgh")))


@given(NAMES, HELD, st.lists(st.sampled_from(["one", "two", "three"]), min_size=8, max_size=8), st.booleans())
def test_each_document_is_given_out_once_and_to_who_holds_it(
    names: list[str], held: dict[str, set[str]], workers: list[str], returned: bool
) -> None:
    queue = Schedule(map(task, names))
    for node, documents in held.items():
        queue.hold(node, *documents)
    left, given_out = set(names), []
    first = None
    if returned:
        first = queue.take(workers[0])
        queue.put_back(first)
    for node in workers[: len(names)]:
        taken = queue.take(node).name
        mine, others = held.get(node, set()) & left, left - set().union(*held.values())
        eligible = mine or others or left
        assert taken in eligible
        if first is None or taken != first.name:
            assert SIZES[taken] == max(SIZES[name] for name in eligible)
        given_out.append(taken)
        left.remove(taken)
    assert sorted(given_out) == sorted(names)
    assert not len(queue)


def test_a_task_loses_the_questions_that_are_answered() -> None:
    questions = tuple(Question(text) for text in ("a", "b", "c"))
    whole = DocumentTask("n", "n", questions, ("1", "2", "3"), "f")
    left = whole.without(["2"])
    assert [question.text for question in left.questions] == ["a", "c"]
    assert left.keys == ("1", "3")
