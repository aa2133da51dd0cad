"""What single policies say of tensors, without a model."""

import torch
import torch.nn.functional as F

from kvcli.cache.units import DenseUnits
from kvcli.eviction.base import Chunk
from kvcli.eviction.keydiff import Keydiff
from kvcli.eviction.knorm import Knorm
from kvcli.eviction.random import Random
from kvcli.eviction.selection import select
from kvcli.eviction.snapkv import Snapkv
from kvcli.eviction.streaming import Streaming


def chunk(kept: int = 3, new: int = 5, *, probe: int = 0, start: int = 10, state: dict | None = None) -> Chunk:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    units = kept + new
    k, v, q, scores = draw(2, units, 8), draw(2, units, 8), draw(4, new, 8), draw(2, kept)
    q_rotated, rotated = draw(4, new + probe, 8), draw(2, units + probe, 8)
    places = torch.cat([torch.tensor([*[0, 4, 9][:kept], *range(10, 7 + kept)]), torch.arange(start, start + new)])
    return Chunk(
        layer=1,
        start=start,
        units=DenseUnits(k, v, rotated),
        new_k=k[:, kept:],
        new_v=v[:, kept:],
        q=q,
        pos=places.int().expand(2, units),
        scores=scores,
        state={} if state is None else state,
        q_rotated=q_rotated,
        scale=0.4,
        probe=probe,
    )


def test_selection_protects_without_touching_scores() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 3.0, 2.0]])
    before = scores.clone()
    assert select(scores, 2).tolist() == [[0, 2]]
    assert select(scores, 2, recent=1).tolist() == [[0, 4]]
    assert select(scores, 2, sinks=torch.tensor([[False, True, False, False, False]])).tolist() == [[0, 1]]
    assert torch.equal(scores, before)


def test_selection_differs_by_head() -> None:
    assert select(torch.tensor([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]]), 2).tolist() == [[1, 2], [0, 1]]


def test_knorm_prefers_small_keys() -> None:
    c = chunk()
    assert torch.equal(Knorm().score(c).argmax(1), c.k[:, 3:].norm(dim=-1).argmin(1))


def test_streaming_prefers_new_units() -> None:
    assert Streaming().score(chunk()).tolist() == [[10, 11, 12, 13, 14]] * 2


def test_keydiff_compares_with_the_mean_of_the_whole_stream() -> None:
    state: dict[str, torch.Tensor] = {}
    first = chunk(kept=0, state=state)
    Keydiff().rescore(first)
    second = chunk(kept=3, state=state)
    scores = Keydiff().rescore(second)
    seen = torch.cat([first.k, second.k[:, 3:]], dim=1)
    anchor = F.normalize(seen, dim=-1).mean(dim=1, keepdim=True)
    expected = -F.cosine_similarity(second.k, anchor.expand_as(second.k), dim=-1)
    assert torch.allclose(scores, expected, atol=1e-6)


def test_snapkv_sees_what_the_probe_sees() -> None:
    c = chunk(kept=3, new=5, probe=2)
    q, k = c.rotated
    logits = torch.einsum("hgmd,hnd->hgmn", q[:, -2:].view(2, 2, 2, 8), k) * c.scale
    logits[..., 0, -1] = float("-inf")
    mass = logits.softmax(-1).mean(dim=(1, 2))[:, :8]
    assert torch.allclose(Snapkv(pool=1).rescore(c), mass, atol=1e-6)
    assert Snapkv(pool=5).rescore(c).shape == (2, 8)


def test_random_is_uniform_and_differs_by_seed_layer_and_head() -> None:
    big = chunk(kept=0, new=4000, start=0)
    draw = Random(seed=1).score(big)
    assert 0.45 < float(draw.mean()) < 0.55
    assert 0.27 < float(draw.std()) < 0.31
    assert float((draw[0] == draw[1]).float().mean()) < 0.01
    assert float((draw == Random(seed=2).score(big)).float().mean()) < 0.01
    for lag in (1, 2, 3):
        assert abs(float(torch.corrcoef(torch.stack([draw[0, :-lag], draw[0, lag:]]))[0, 1])) < 0.05
