"Scores: each against its formula, entry by entry; units against slow loops over the weights they own."

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from pruneresearch.methods.gradient import fisher, fisher_weighted, gradient, taylor
from pruneresearch.methods.magnitude import magnitude
from pruneresearch.methods.random import random as random_score
from pruneresearch.methods.wanda import wanda
from pruneresearch.model.anatomy import anatomy
from pruneresearch.pruning.selection import mean_unit_score


@pytest.fixture(scope="module")
def numbers():
    "(weight, gradient, squared gradients of 5 examples summed, input norms), with zeros and both signs among them."
    random = np.random.default_rng(0)
    weight, examples, norm = random.normal(size=(7, 11)), random.normal(size=(5, 7, 11)), random.uniform(0, 3, 11)
    weight[2, 3] = examples[:, 1, 4] = norm[5] = 0
    return weight, examples.mean(0), (examples**2).sum(0), norm


def every_entry(formula, shape):
    "The oracle: one number at a time."
    return np.array([[formula(i, j) for j in range(shape[1])] for i in range(shape[0])])


def tensors(*arrays):
    return [torch.tensor(array, dtype=torch.float32) for array in arrays]


@pytest.mark.parametrize(
    "score, arguments, formula",
    [
        (magnitude, "w", lambda w, g, f, x: lambda i, j: max(w[i, j], -w[i, j])),
        (gradient, "wg", lambda w, g, f, x: lambda i, j: max(g[i, j], -g[i, j])),
        (taylor, "wg", lambda w, g, f, x: lambda i, j: (w[i, j] ** 2 * g[i, j] ** 2) ** 0.5),
        (fisher, "f", lambda w, g, f, x: lambda i, j: f[i, j]),
        (fisher_weighted, "wf", lambda w, g, f, x: lambda i, j: w[i, j] * w[i, j] * f[i, j]),
        (wanda, "wx", lambda w, g, f, x: lambda i, j: max(w[i, j], -w[i, j]) * x[j]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_score_is_its_formula(numbers, score, arguments, formula):
    named = dict(zip("wgfx", numbers, strict=True))
    given = tensors(*(named[a] for a in arguments))
    before = [t.clone() for t in given]
    found = score(*given)
    np.testing.assert_allclose(found.numpy(), every_entry(formula(*numbers), (7, 11)), rtol=1e-6)
    assert (found >= 0).all() and all(torch.equal(a, b) for a, b in zip(given, before, strict=True))  # inputs untouched


def test_scores_disagree(numbers):
    "Six scores, six orders: none is another one under a second name."
    w, g, f, x = tensors(*numbers)
    scores = (
        magnitude(w),
        gradient(w, g),
        taylor(w, g),
        fisher(f),
        fisher_weighted(w, f),
        wanda(w, x),
    )
    assert len({tuple(s.flatten().argsort().tolist()) for s in scores}) == 6


def test_random_score_is_seeded_and_uniform():
    weight, other = torch.zeros(100, 200), torch.randn(100, 200)

    def draw(weight, seed):
        return random_score(weight, torch.Generator().manual_seed(seed))

    first = draw(weight, 0)
    assert torch.equal(first, draw(other, 0)) and not torch.equal(
        first, draw(weight, 1)
    )  # neither the weight nor chance
    assert first.shape == weight.shape and 0 <= first.min() and first.max() <= 1
    counts = np.histogram(first.numpy(), bins=10, range=(0, 1))[0]
    assert abs(counts - 2000).max() < 250  # six standard deviations


def slow_unit_scores(count, rows_of, producers, consumer, columns, scores):
    "The oracle: a list of every owned entry of every unit, then its mean."
    means = []
    for unit in range(count):
        owned = []
        for name in producers:
            table = scores[f"{name}.weight"].tolist()
            for row in range(unit * rows_of[name], (unit + 1) * rows_of[name]):
                owned += table[row]
        for row in scores[f"{consumer}.weight"].tolist():
            for column in range(unit * columns, (unit + 1) * columns):
                owned.append(row[column])
        means.append(sum(owned) / len(owned))
    return means


@pytest.mark.parametrize(
    "producers, consumer, columns, count",
    [
        (dict(q=4, k=4, v=4), "o", 4, 3),  # plain attention: three heads of four
        (dict(q=8, k=4, v=4), "o", 8, 3),  # grouped queries: two query heads share a key/value head
        (dict(up=1), "down", 1, 5),
        (dict(gate=1, up=1), "down", 1, 5),
    ],
)
def test_unit_score_by_hand_made_groups(producers, consumer, columns, count):
    random = torch.Generator().manual_seed(0)
    scores = {f"{name}.weight": torch.rand(count * rows, 6, generator=random) for name, rows in producers.items()}
    scores[f"{consumer}.weight"] = torch.rand(6, count * columns, generator=random) * 3
    group = SimpleNamespace(count=count, producers=producers, consumer=consumer, columns=columns)
    found = mean_unit_score(group, scores)
    assert found.shape == (count,)
    assert found.tolist() == pytest.approx(
        slow_unit_scores(count, producers, producers, consumer, columns, scores), rel=1e-5
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_unit_score_of_a_model(name):
    """Sizes from tests/architectures.py: 32 wide, 64 neurons, heads of 8, two query heads a unit where queries are
    grouped."""
    structure, random = anatomy(ARCHITECTURES[name]()), torch.Generator().manual_seed(1)
    scores = {
        f"{linear}.weight": torch.rand(module.weight.shape, generator=random)
        for linear, module in structure.linears.items()
    }
    grouped = name in ("llama", "mistral", "qwen2")
    for block in structure.blocks:
        q, k, v, o = (block.names[role] for role in "qkvo")
        found = mean_unit_score(block.heads, scores)
        assert found.tolist() == pytest.approx(
            slow_unit_scores(
                2 if grouped else 4, {q: 16 if grouped else 8, k: 8, v: 8}, (q, k, v), o, 16 if grouped else 8, scores
            ),
            rel=1e-5,
        )
        producers = [block.names[role] for role in (("gate", "up") if grouped else ("fc1",))]
        consumer = block.names["down" if grouped else "fc2"]
        assert mean_unit_score(block.neurons, scores).tolist() == pytest.approx(
            slow_unit_scores(64, dict.fromkeys(producers, 1), producers, consumer, 1, scores), rel=1e-5
        )
