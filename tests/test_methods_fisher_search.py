"Fisher mask search against single examples, all choices, and a least-squares solver."

import itertools

import pytest
import torch
from architectures import ARCHITECTURES
from architectures import batch as make_batch

from pruneresearch.basics.errors import UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.measure.cost import macs
from pruneresearch.methods.fisher_search import mask_gradients, rearranged, rescale, search_units
from pruneresearch.model.calls import forward
from pruneresearch.model.loading import load_model
from pruneresearch.model.losses import example_losses
from pruneresearch.pruning.budget import kept_share, one_sequence, search, shares_of
from pruneresearch.pruning.masks import Masks
from pruneresearch.shipping.surgery import remove
from pruneresearch.training.gates import sites


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_masks_example_by_example(name):
    "∂ℓ/∂m = Σ W ⊙ ∂ℓ/∂W over the columns that read the unit, one example at a time."
    model, data = ARCHITECTURES[name](), make_batch(name, n=3, padded=True)
    found = mask_gradients(model, [data])
    for site in sites(model, ("heads", "neurons")):
        for i in range(3):
            one = {key: value[i : i + 1] for key, value in data.items()}
            (gradient,) = torch.autograd.grad(example_losses(model, one).sum(), [site.linear.weight])
            expected = (gradient * site.linear.weight.detach()).reshape(-1, site.count, site.width).sum((0, 2))
            assert torch.allclose(found[site.key][i], expected, atol=1e-5 + 1e-4 * expected.abs().max())
    assert all(p.requires_grad for p in model.parameters()) and not model.training


def test_batches_do_not_matter():
    model, data = ARCHITECTURES["bert"](), make_batch("bert", n=6, padded=True)
    whole = mask_gradients(model, [data])
    parts = mask_gradients(model, [{k: v[i : i + 2] for k, v in data.items()} for i in (0, 2, 4)])
    assert all(torch.allclose(whole[key], parts[key], atol=1e-6) for key in whole)
    with pytest.raises(UsageError, match="empty"):
        mask_gradients(model, [])


def lost(importance, masks):
    return sum(float(importance[key][~mask].sum()) for key, mask in masks.items())


@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_best_of_all_choices(seed):
    random = torch.Generator().manual_seed(seed)
    sizes = {(0, "heads"): 2, (1, "heads"): 2, (0, "neurons"): 3, (1, "neurons"): 3}
    importance = {key: torch.rand(n, generator=random) for key, n in sizes.items()}
    every = itertools.product(*[itertools.product((False, True), repeat=n) for n in sizes.values()])
    some = [bits for bits in every if all(map(any, bits))]  # a unit of each kind stays in each block
    choices = [{key: torch.tensor(b) for key, b in zip(sizes, bits, strict=True)} for bits in some]
    terms = [(8, ((b, "heads"),)) for b in (0, 1)] + [(6, ((b, "neurons"),)) for b in (0, 1)] + [(4, ())]
    for keep in (0.55, 0.7, 0.9):
        found = search(importance, terms, keep)
        best = min(
            lost(importance, masks) for masks in choices if float(kept_share(terms, shares_of(masks))) <= keep + 1e-9
        )
        assert (
            lost(importance, found) == pytest.approx(best, abs=1e-6)
            and float(kept_share(terms, shares_of(found))) <= keep + 1e-6
            and all(mask.any() for mask in found.values())
        )


def test_a_budget_too_small_is_refused():
    with pytest.raises(UsageError, match="cannot be met"):
        search({(0, "neurons"): torch.ones(4)}, [(4, ((0, "neurons"),)), (6, ())], 0.6)


@pytest.mark.parametrize("seed", range(5))
def test_no_single_exchange_improves_a_rearrangement(seed):
    g = torch.randn(20, 8, generator=torch.Generator().manual_seed(seed))
    g[:, 1] = g[:, 0]
    keep = torch.tensor([False] * 4 + [True] * 4)

    def lost(mask):
        return float(g[:, ~mask].sum(1).square().sum())

    after = rearranged(keep, g)
    assert after.sum() == keep.sum() and lost(after) <= lost(keep) + 1e-4
    for a, b in itertools.product((~after).nonzero().flatten(), after.nonzero().flatten()):
        other = after.clone()
        other[a], other[b] = True, False
        assert lost(other) >= lost(after) - 1e-3


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama", "opt"])
def test_factors_are_least_squares(name):
    "The first layer's factors against a solver that is given every token's contribution of every unit."
    import copy

    dense, data = ARCHITECTURES[name](), make_batch(name, n=8, padded=True)
    model, site = copy.deepcopy(dense), sites(dense, ("heads",))[0]
    keep = {s.key: torch.arange(s.count) >= (1 if s.key == site.key else 0) for s in sites(dense, ("heads",))}
    Masks.from_units(model, keep).apply(model)
    weight, seen = next(s.linear for s in sites(model, ("heads",)) if s.key == site.key).weight.detach().clone(), {}
    handle = site.linear.register_forward_pre_hook(lambda module, inputs: seen.update(x=inputs[0].detach()))
    with torch.no_grad():
        forward(dense, data)
    handle.remove()
    x = seen["x"].reshape(8, -1, seen["x"].shape[-1])[data["attention_mask"].bool()].double()
    parts = torch.stack(
        [
            x[:, u * site.width : (u + 1) * site.width] @ weight[:, u * site.width : (u + 1) * site.width].double().T
            for u in range(1, site.count)
        ],
        -1,
    )
    expected = torch.linalg.lstsq(
        parts.flatten(0, 1), (x @ site.linear.weight.detach().double().T).flatten()[:, None]
    ).solution.flatten()
    factors = rescale(model, dense, keep, [data], damping=1e-9)
    assert torch.allclose(factors[site.key][1:].double(), expected, rtol=1e-3, atol=1e-4) and factors[site.key][0] == 1
    untouched = rescale(
        copy.deepcopy(dense),
        dense,
        {s.key: torch.ones(s.count, dtype=torch.bool) for s in sites(dense, ("neurons",))},
        [data],
    )
    assert all(torch.allclose(f, torch.ones_like(f), atol=1e-3) for f in untouched.values())


def test_on_a_model_the_budget_is_met_and_counted():
    task = load_task("paraphrase")
    model = load_model("tiny-bert", task)
    length = task.default_length(model.tokenizer, 128)
    dense = macs(model, one_sequence(model, length))
    found = search_units(model, task, 0.5, n=64, n_rescale=32)
    assert abs(found.kept - 0.5) < 0.005
    found.masks.verify(model)
    assert macs(remove(model, found.masks), one_sequence(model, length)) / dense == pytest.approx(found.kept, abs=1e-4)
    with pytest.raises(UsageError, match="fraction"):
        search_units(model, task, 50)
