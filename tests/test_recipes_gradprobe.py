"GradProbe: the published rule against its steps in plain PyTorch, the rankings by hand, and defects."

import copy
import gc
import weakref
from functools import cache

import pytest
import torch
from architectures import ARCHITECTURES, batch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.losses import example_losses
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.candidates import evidence
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.pruning.patterns import Pattern
from pruneresearch.pruning.registry import METHODS
from pruneresearch.recipes.gradprobe import (
    GradProbe,
    MagnitudePruning,
    PruningStrategy,
    ScoreStrategy,
    WandaPruning,
    loss_with,
    register_strategy,
)
from pruneresearch.shipping.surgery import remove

QUIET = dict(verbose=False)


def mlp(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return SimpleMLP(input_dim=12, hidden_dims=(16, 8), output_dim=4).to(dtype)


def examples(n=64, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, 12, generator=generator)
    return inputs.to(dtype), (inputs[:, :4] + 0.1 * torch.randn(n, 4, generator=generator)).argmax(1)


def loader(size=16, shuffle=False, **how):
    return DataLoader(
        TensorDataset(*examples(**how)), batch_size=size, shuffle=shuffle, generator=torch.Generator().manual_seed(5)
    )


def trained(epochs=30, seed=0):
    return copy.deepcopy(trained_once(epochs, seed))


@cache
def trained_once(epochs, seed):
    model = mlp(seed)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(epochs):
        for inputs, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
    return model


def names_in_blocks(model):
    "The oracle's scope: the weights of linear layers under a numbered list of the model, by name."
    linears = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    inside = {name for name in linears if any(part.isdigit() for part in name.split("."))}
    return [f"{name}.weight" for name, _ in model.named_modules() if name in inside and "lm_head" not in name]


# --- the oracle: five steps, weight by weight ----------------------------------------------------------------------


def largest(model, losses):
    "name → max over batches of |gradient|, by plain backward passes."
    found = {}
    for loss in losses:
        model.zero_grad()
        loss(model).backward()
        for name, p in model.named_parameters():
            found[name] = (
                torch.maximum(found.get(name, torch.zeros_like(p)), p.grad.abs())
                if p.grad is not None
                else found.get(name, torch.zeros_like(p))
            )
    model.zero_grad()
    return found


def by_published_steps(model, losses, candidates, factor=0.1, threshold=0.0):
    "What goes, by the published steps; the model is a copy."
    model = copy.deepcopy(model).eval()
    first = largest(model, losses)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in candidates:
                p.copy_(torch.where(candidates[name], p * factor, p))
    second = largest(model, losses)
    return {name: candidates[name] & (second[name] <= first[name] * (1 + threshold)) for name in candidates}


def smallest(model, names, sparsity):
    masks = {}
    for name in names:
        weight = dict(model.named_parameters())[name].detach()
        masks[name] = torch.zeros(weight.numel(), dtype=torch.bool)
        for i in sorted(range(weight.numel()), key=lambda i: (abs(float(weight.flatten()[i])), i))[
            : int(sparsity * weight.numel())
        ]:
            masks[name][i] = True
        masks[name] = masks[name].view(weight.shape)
    return masks


def of_batches(batches):
    return [lambda model, b=b: F.cross_entropy(model(b[0]), b[1]) for b in batches]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("factor", [0.0, 0.1, 0.6])
def test_the_rule_on_a_plain_module(threshold, factor):
    model = trained(3).double()
    batches = [(inputs.double(), labels) for inputs, labels in loader()]
    expected = by_published_steps(
        model,
        of_batches(batches),
        smallest(model, [n for n, _ in model.named_parameters() if n.endswith("weight")], 0.5),
        factor,
        threshold,
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = GradProbe(model, MagnitudePruning()).prune(
        batches, nn.CrossEntropyLoss(), 0.5, 10, factor, threshold, False
    )
    assert masks.keys() == expected.keys() and 0 < sum(int(m.sum()) for m in masks.values())
    for name, p in model.named_parameters():
        gone = expected.get(name, torch.zeros_like(p, dtype=torch.bool))
        if name in masks:
            assert torch.equal(masks[name], gone)
        assert torch.equal(p, before[name].masked_fill(gone, 0))


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_the_rule_on_every_architecture_and_through_prune(name):
    data = [batch(name, n=4, padded=True, seed=seed) for seed in (0, 1)]
    model = ARCHITECTURES[name]()
    names = names_in_blocks(model)
    expected = by_published_steps(
        model, [lambda m, b=b: example_losses(m, b).mean() for b in data], smallest(model, names, 0.4), threshold=0.05
    )
    mine = copy.deepcopy(model)
    masks = GradProbe(mine, MagnitudePruning()).prune(data, sparsity=0.4, gradient_threshold=0.05, **QUIET)
    also = prune(model, calibration=data, method="gradprobe", sparsity=0.4, options={"threshold": 0.05}).masks
    assert masks.keys() == expected.keys() == also.keep.keys() and any(m.any() for m in masks.values())
    for key in expected:
        differ = int((masks[key] != expected[key]).sum())
        assert differ <= 1e-3 * expected[key].numel(), (
            f"{key}: {differ} entries"
        )  # a gradient that grew by a rounding error
        assert torch.equal(also.keep[key], ~masks[key])


# --- the rankings --------------------------------------------------------------------------------------------------


def test_ratio_by_hand():
    model, data = trained(5).double(), [(x.double(), y) for x, y in loader()]
    names = [n for n, _ in model.named_parameters() if n.endswith("weight")]
    asked, wider = (smallest(model, names, s) for s in (0.5, 0.6))
    first = largest(copy.deepcopy(model).eval(), of_batches(data))
    small = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, p in small.named_parameters():
            if name in wider:
                p.copy_(torch.where(wider[name], p * 0.1, p))
    second = largest(small, of_batches(data))
    masks = GradProbe(model, MagnitudePruning()).prune(data, nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    for name in names:
        growth = (second[name] / second[name].norm()) / (first[name] / first[name].norm())
        growth[(first[name] == 0) & (second[name] == 0)] = 0  # nothing pulls at it, before or after
        order = sorted(map(tuple, wider[name].nonzero().tolist()), key=lambda at: float(growth[at]))
        expected = set(order[: int(asked[name].sum())])
        assert set(map(tuple, masks[name].nonzero().tolist())) == expected
        assert not torch.equal(masks[name], asked[name]), "the ranking decided nothing"


def test_loss_is_the_change_of_a_quadratic_loss():
    "With one candidate and a squared loss, the trapezoid is exact."
    model = nn.Linear(3, 2, bias=False)
    data = [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(3)]
    squared = loss_with(nn.MSELoss())
    for i in range(6):
        candidate = {"weight": torch.zeros(2, 3, dtype=torch.bool)}
        candidate["weight"].view(-1)[i] = True
        _, looks = next(evidence(model, data, squared, candidate, ("change",), 0.25))
        change = looks["change"]
        before = sum(squared(model, b).item() for b in data)
        with torch.no_grad():
            model.weight.view(-1)[i] *= 0.25
        after = sum(squared(model, b).item() for b in data)
        with torch.no_grad():
            model.weight.view(-1)[i] /= 0.25
        assert float(change.view(-1)[i]) == pytest.approx(before - after, abs=1e-5)


@pytest.mark.parametrize("comparison", ["ratio", "loss"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(
    "strategy",
    [MagnitudePruning(), WandaPruning(), ScoreStrategy("random"), ScoreStrategy("magnitude", allocation="global")],
    ids=["magnitude", "wanda", "random", "global"],
)
def test_rankings_take_of_each_layer_what_the_strategy_would(strategy, sparsity, comparison):
    data, model = list(loader()), trained(3)
    strategy.prepare(model, data)
    asked = strategy.select_weights_to_prune(model, sparsity)
    masks = GradProbe(model, strategy).prune(data, nn.CrossEntropyLoss(), sparsity, comparison=comparison, **QUIET)
    assert {name: int(m.sum()) for name, m in masks.items()} == {name: int(m.sum()) for name, m in asked.items()}


def test_the_rule_collapses_and_the_rankings_do_not():
    shares = {"rule": [], "ratio": []}
    for epochs in (3, 30, 300):
        for comparison, found in shares.items():
            probe = GradProbe(trained(epochs), MagnitudePruning())
            probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison=comparison, **QUIET)
            found.append(probe.get_sparsity())
    first, second, third = shares["rule"]
    assert first > second > third and third < 0.1 and set(shares["ratio"]) == {0.5}


@pytest.mark.parametrize("comparison", ["rule", "ratio", "loss"])
def test_controls_take_as_many_of_the_same_candidates(comparison):
    data = [batch("llama", n=4, seed=s) for s in (0, 1)]
    masks = {
        control: prune(
            ARCHITECTURES["llama"](),
            calibration=data,
            method="gradprobe" if comparison == "rule" else f"gradprobe-{comparison}",
            sparsity=0.5,
            options={"threshold": 0.2 if comparison == "rule" else 0.0, "control": control},
        ).masks.keep
        for control in (None, "random", "magnitude", "wanda")
    }
    plain = prune(ARCHITECTURES["llama"](), method="magnitude", sparsity=0.5).masks.keep
    pool = (
        plain if comparison == "rule" else prune(ARCHITECTURES["llama"](), method="magnitude", sparsity=0.6).masks.keep
    )
    counts = {key: int((~keep).sum()) for key, keep in masks[None].items()}
    for control in ("random", "magnitude", "wanda"):
        for key, keep in masks[control].items():
            assert int((~keep).sum()) == counts[key]
    assert not any((pool[key] & ~keep).any() for key, keep in masks["random"].items()) and any(
        (pool[key] & ~keep).any() for key, keep in masks["wanda"].items()
    )
    for control in ("random", "magnitude", "wanda"):
        assert any(not torch.equal(keep, masks[None][key]) for key, keep in masks[control].items())
    if comparison != "rule":
        assert all(torch.equal(keep, plain[key]) for key, keep in masks["magnitude"].items())


# --- what must not matter ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("comparison", ["rule", "ratio", "loss"])
def test_survivors_keep_their_bits(comparison, dtype):
    model, data = trained(2).to(dtype), [(x.to(dtype), y) for x, y in loader()]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    masks = GradProbe(model, MagnitudePruning()).prune(
        data, nn.CrossEntropyLoss(), 0.5, gradient_threshold=0.2, comparison=comparison, **QUIET
    )
    assert 0 < sum(int(m.sum()) for m in masks.values())
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name].masked_fill(masks.get(name, torch.zeros_like(p, dtype=torch.bool)), 0))


def test_half_precision_does_not_turn_small_gradients_into_unchanged_ones():
    "Float16 cannot hold gradients of 1e-7 to 1e-8: without a scale they would be zero, and zero never grows."
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1, 0.5, 0.25, 0.125], [1, 0.5, 0.25, 0.125]]))

    def tiny(output, target):
        return (output - target).float().square().mean() * 1e-8

    data = [(torch.eye(4), torch.ones(4, 2))]
    wide = GradProbe(copy.deepcopy(model), MagnitudePruning()).prune(data, tiny, 0.5, **QUIET)
    half = GradProbe(model.half(), MagnitudePruning()).prune(
        [(x.half(), y.half()) for x, y in data], tiny, 0.5, **QUIET
    )
    assert torch.equal(wide["weight"], half["weight"]) and not half["weight"].any()


def test_a_shuffling_loader_gives_what_its_batches_give():
    shuffled = loader(shuffle=True)
    drawn = list(shuffled)
    shuffled.generator.manual_seed(5)
    for comparison in ("rule", "ratio", "loss"):
        one, other, mixed = (
            GradProbe(trained(3), MagnitudePruning()).prune(
                data, nn.CrossEntropyLoss(), 0.5, comparison=comparison, **QUIET
            )
            for data in (drawn, shuffled, drawn[::-1])
        )
        shuffled.generator.manual_seed(5)
        assert all(torch.equal(one[name], other[name]) for name in one)
        if comparison != "loss":
            assert all(
                torch.equal(one[name], mixed[name]) for name in one
            )  # a maximum has no order; a sum has one in its last bit


@pytest.mark.parametrize("comparison", ["rule", "ratio", "loss"])
@pytest.mark.parametrize("pattern", ["unstructured", "heads+neurons"])
def test_layer_by_layer_is_the_same(pattern, comparison):
    data, options = [batch("bert", n=4)], {"candidates": 0.8} if comparison != "rule" else {"threshold": 0.3}
    name = "gradprobe" if comparison == "rule" else f"gradprobe-{comparison}"
    one, other = (
        prune(
            ARCHITECTURES["bert"](),
            calibration=data,
            method=name,
            pattern=pattern,
            sparsity=0.5,
            options=options | {"by_layer": by_layer},
        ).masks.keep
        for by_layer in (False, True)
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_layer_by_layer_holds_the_gradients_of_one_layer(monkeypatch):
    from pruneresearch.pruning import candidates

    alive, real = [], candidates.gradients

    def counting(model, weights, *rest):
        alive.append(sum(w.numel() for w in weights.values()))
        return real(model, weights, *rest)

    monkeypatch.setattr(candidates, "gradients", counting)
    model = mlp()
    GradProbe(model, MagnitudePruning()).prune(loader(), nn.CrossEntropyLoss(), 0.5, by_layer=True, **QUIET)
    assert alive == [12 * 16, 12 * 16, 16 * 8, 16 * 8, 8 * 4, 8 * 4]


def test_dropout_and_training_mode_do_not_matter_and_come_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 4))
    one, other = copy.deepcopy(model).train(), copy.deepcopy(model).eval()
    masks = [
        GradProbe(m, MagnitudePruning()).prune(loader(), nn.CrossEntropyLoss(), 0.5, gradient_threshold=0.3, **QUIET)
        for m in (one, other)
    ]
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0]) and masks[0]["0.weight"].any()
    assert (
        one.training
        and one[1].training
        and not other.training
        and all(p.requires_grad and p.grad is None for p in one.parameters())
    )


# --- permanence, rounds, sweep -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ],
    ids=["AdamW", "SGD"],
)
def test_permanent_zeros_stay_through_momentum_and_weight_decay(make):
    model = trained(2)
    optimizer = make(model.parameters())

    def step(dtype=torch.float32):
        for inputs, labels in loader(dtype=dtype):
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    step()  # momentum there already
    probe = GradProbe(model, MagnitudePruning())
    masks = probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    probe.apply_mask_permanently()
    before = copy.deepcopy(model)
    for _ in range(5):
        step()
        assert (
            all((p[masks[name]] == 0).all() for name, p in model.named_parameters() if name in masks)
            and probe.get_sparsity() == 0.5
        )
    assert all(not torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    model.double()
    optimizer = make(model.parameters())
    step(torch.float64)
    assert probe.get_sparsity() == 0.5


def test_permanence_ends_with_the_model():
    from torch.optim import optimizer as room

    gc.collect()
    hooks = len(room._global_optimizer_post_hooks)
    probe = GradProbe(trained(1), MagnitudePruning())
    probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    probe.apply_mask_permanently()
    alive = weakref.ref(probe.model)
    assert len(room._global_optimizer_post_hooks) == hooks + 1
    del probe
    gc.collect()
    assert alive() is None and len(room._global_optimizer_post_hooks) == hooks


@pytest.mark.parametrize("comparison", ["rule", "ratio"])
def test_rounds_with_training_between_them(comparison):
    model, sparsities = trained(2), []

    def between(model, masks):
        masks.verify(model)
        sparsities.append(probe.get_sparsity())
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        for inputs, labels in loader():
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    probe = GradProbe(model, MagnitudePruning())
    probe.prune(
        loader(),
        nn.CrossEntropyLoss(),
        0.75,
        gradient_threshold=0.2,
        comparison=comparison,
        rounds=3,
        schedule="linear",
        between=between,
        **QUIET,
    )
    assert len(sparsities) == 2 and 0 < sparsities[0] <= sparsities[1] <= probe.get_sparsity()
    if comparison == "ratio":
        assert [*sparsities, probe.get_sparsity()] == [0.25, 0.5, 0.75]


def test_the_sweep_is_what_prune_would_do_and_changes_nothing():
    model = trained(3)
    before = copy.deepcopy(model.state_dict())
    seen = []

    def metric(model):
        seen.append(sum(int((p == 0).sum()) for name, p in model.named_parameters()))
        return float(len(seen))

    found = GradProbe(model, MagnitudePruning()).sweep_gradient_thresholds(
        dataloader=loader(),
        loss_fn=nn.CrossEntropyLoss(),
        eval_fn=metric,
        sparsity=0.5,
        thresholds=[0.0, 0.1, 0.5, 100.0],
        num_batches=3,
        verbose=False,
    )
    assert (
        list(found) == ["thresholds", "sparsities", "weights_pruned", "metrics"]
        and found["thresholds"] == [0.0, 0.1, 0.5, 100.0]
        and found["metrics"] == [1, 2, 3, 4]
    )
    assert found["weights_pruned"] == sorted(found["weights_pruned"]) == seen and found["sparsities"][-1] <= 0.5
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for threshold, share in zip(found["thresholds"], found["sparsities"], strict=True):
        probe = GradProbe(copy.deepcopy(model), MagnitudePruning())
        probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, 3, 0.1, threshold, False)
        assert probe.get_sparsity() == pytest.approx(share)


def test_the_published_names_come_from_the_top():
    from pruneresearch import GradProbe, MagnitudePruning, SimpleMLP

    model = SimpleMLP(input_dim=784, hidden_dims=[512, 256], output_dim=10)
    data = DataLoader(TensorDataset(torch.rand(64, 784), torch.arange(64) % 10), batch_size=32, shuffle=True)
    probe = GradProbe(model, MagnitudePruning(), device="cpu")
    masks = probe.prune(
        dataloader=data,
        loss_fn=nn.CrossEntropyLoss(),
        sparsity=0.5,
        num_batches=10,
        reduction_factor=0.1,
        gradient_threshold=0.0,
        verbose=True,
    )
    probe.apply_mask_permanently()
    assert {name: tuple(m.shape) for name, m in masks.items()} == {
        "layers.0.weight": (512, 784),
        "layers.2.weight": (256, 512),
        "layers.4.weight": (10, 256),
    }
    assert probe.get_sparsity() == sum(int(m.sum()) for m in masks.values()) / sum(
        m.numel() for m in masks.values()
    ) <= 0.5 and any(m.any() for m in masks.values())


# --- whole heads and neurons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["gradprobe", "gradprobe-ratio", "gradprobe-loss"])
@pytest.mark.parametrize("name", ["bert", "llama", "opt"])
def test_units_go_whole_and_can_be_taken_out(name, method):
    model = ARCHITECTURES[name]()
    result = prune(
        model,
        calibration=[batch(name, n=4)],
        method=method,
        pattern="heads+neurons",
        sparsity=0.5,
        options={"threshold": 0.5} if method == "gradprobe" else None,
    )
    units = result.masks.units(model)
    for keep in units.values():
        if method != "gradprobe":
            assert int((~keep).sum()) * 2 == len(keep)
    assert any((~keep).any() for keep in units.values())
    smaller, data = remove(copy.deepcopy(model), result.masks), batch(name, n=2)
    with torch.no_grad():
        assert torch.allclose(example_losses(model.eval(), data), example_losses(smaller.eval(), data), atol=1e-5)


def test_units_by_strategy():
    strategy = ScoreStrategy("taylor", pattern="neurons")
    model = ARCHITECTURES["bert"]()
    masks = GradProbe(model, strategy).prune([batch("bert")], sparsity=0.25, comparison="loss", **QUIET)
    assert all(
        int((~keep).sum()) * 4 == len(keep)
        for (_, kind), keep in Masks({name: ~m for name, m in masks.items()}).units(model).items()
        if kind == "neurons"
    )


# --- candidates and bad answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_embeddings_and_heads_are_no_candidates(name):
    model = ARCHITECTURES[name]()
    assert set(MagnitudePruning().select_weights_to_prune(model, 0.5)) == set(names_in_blocks(model))


def test_an_embedding_that_is_also_a_layer_is_no_candidate():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.inner, self.out = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
            self.out.weight = self.words.weight

    assert set(MagnitudePruning().select_weights_to_prune(Tied(), 0.5)) == {"inner.weight"}


class Answer(PruningStrategy):
    def __init__(self, answer):
        self.answer = answer

    def select_weights_to_prune(self, model, sparsity):
        return self.answer(model)

    def get_name(self):
        return "mine"


def zeroing(model):
    with torch.no_grad():
        model.layers[0].weight[:2] = 0
    return {"layers.0.weight": model.layers[0].weight == 0}


@pytest.mark.parametrize(
    "answer, message",
    [
        (zeroing, "strategy 'mine' changed layers.0.weight while selecting; the weights are put back"),
        (lambda m: [True], "'mine' gave list"),
        (lambda m: {"layer": torch.ones(1, dtype=torch.bool)}, "names 'layer', which is no parameter"),
        (
            lambda m: {"layers.0.weight": torch.ones(3, 3, dtype=torch.bool)},
            r"torch.bool of shape \(3, 3\) for layers.0.weight: it must be a bool tensor of shape \(16, 12\)",
        ),
        (lambda m: {"layers.0.weight": torch.ones(16, 12)}, "torch.float32 of shape"),
        (lambda m: {"layers.0.weight": None}, "gave NoneType for layers.0.weight"),
    ],
)
def test_answers_that_do_not_fit_are_one_sentence(answer, message):
    model = trained(1)
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match=message) as error:
        GradProbe(model, Answer(answer)).prune(loader(), nn.CrossEntropyLoss(), 0.5, **QUIET)
    assert "\n" not in str(error.value) and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


def test_a_strategy_of_ones_own_over_every_parameter():
    "As in the published README: a loop over named_parameters."

    class MyCustomStrategy(PruningStrategy):
        def select_weights_to_prune(self, model, sparsity):
            return {name: p.abs() < p.abs().quantile(sparsity) for name, p in model.named_parameters()}

        def get_name(self):
            return "my_custom_strategy"

    model = trained(2)
    probe = GradProbe(model, MyCustomStrategy())
    masks = probe.prune(
        dataloader=loader(), loss_fn=nn.CrossEntropyLoss(), sparsity=0.5, gradient_threshold=0.2, verbose=False
    )
    assert masks.keys() == {name for name, _ in model.named_parameters()} and 0 < probe.get_sparsity() <= 0.5


@pytest.fixture
def largest_first():
    "A registered strategy that takes the largest weights of the first layer it finds."

    class LargestFirst(PruningStrategy):
        def select_weights_to_prune(self, model, sparsity):
            name, weight = next((n, p) for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n)
            return {name: weight.abs() > weight.abs().flatten().quantile(1 - sparsity)}

        def get_name(self):
            return "largest-first"

    yield register_strategy(LargestFirst())
    del METHODS["largest-first"]


def test_a_registered_strategy_is_a_method_and_a_source_of_candidates(largest_first):
    data = [batch("llama")]
    plain = prune(ARCHITECTURES["llama"](), calibration=data, method="largest-first", sparsity=0.25).masks.keep
    ((name, keep),) = plain.items()
    weight = dict(ARCHITECTURES["llama"]().named_parameters())[name].abs()
    assert abs(int((~keep).sum()) / keep.numel() - 0.25) < 0.01 and weight[~keep].min() > weight[keep].max()
    ranked = prune(
        ARCHITECTURES["llama"](),
        calibration=data,
        method="gradprobe-ratio",
        sparsity=0.25,
        options={"strategy": "largest-first", "candidates": 0.5},
    ).masks.keep
    assert (
        ranked.keys() == plain.keys() and (~ranked[name]).sum() == (~keep).sum() and not torch.equal(ranked[name], keep)
    )
    assert weight[~ranked[name]].min() > weight.flatten().quantile(0.49)
    with pytest.raises(UsageError, match="spreads the sparsity by itself"):
        prune(ARCHITECTURES["llama"](), method="largest-first", sparsity=[0.5, 0.25, 0.5])
    for allocation in ("global", "owl"):  # a rule needs data, and none is given: it is refused before that
        with pytest.raises(UsageError, match="Leave allocation out"):
            prune(ARCHITECTURES["llama"](), method="largest-first", sparsity=0.5, allocation=allocation)
    with pytest.raises(UsageError, match="chooses for pattern 'unstructured'"):
        prune(ARCHITECTURES["llama"](), calibration=data, method="largest-first", pattern="neurons", sparsity=0.5)
    with pytest.raises(UsageError, match="'magnitude' belongs to pruneresearch.methods.magnitude"):
        register_strategy(MagnitudePruning())


def test_a_registered_strategy_keeps_what_earlier_rounds_took(largest_first):
    seen = []

    def between(model, masks):
        masks.verify(model)
        seen.append(masks)

    result = prune(
        ARCHITECTURES["llama"](),
        calibration=[batch("llama")],
        method="largest-first",
        sparsity=0.5,
        schedule="linear",
        rounds=2,
        between=between,
    )
    assert len(seen) == 1 and all(
        not (result.masks.keep[name] & ~keep).any() and (~keep).any() for name, keep in seen[0].keep.items()
    )


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(sparsity=1.0), "sparsity"),
        (dict(reduction_factor=1.0), r"fraction in \[0, 1\)"),
        (dict(gradient_threshold=-0.1), "threshold must be a number from 0"),
        (dict(comparison="gradient"), "comparison"),
        (dict(num_batches=0), "num_batches"),
        (dict(candidates=0.7), "leave candidates out"),
        (dict(candidates=0.3, comparison="ratio"), r"\[0.5, 1\)"),
        (dict(rounds=2), "one-shot"),
        (dict(dataloader=[]), "no batch"),
        (dict(candidates="0.7", comparison="ratio"), r"\[0.5, 1\)"),
        (dict(gradient_threshold=float("inf")), "threshold must be a number"),
        (dict(dataloader=None), "got NoneType"),
        (dict(dataloader={"inputs": 1}), "got dict"),
        (dict(dataloader=[torch.zeros(4, 12)]), "got Tensor"),
        (dict(dataloader=[(1, 2, 3)]), "got tuple of 3"),
        (dict(loss_fn=None), "need a loss"),
        (dict(loss_fn=nn.CrossEntropyLoss), "make one"),
        (dict(loss_fn=nn.CrossEntropyLoss(reduction="none")), r"the loss is a tensor of shape \(16,\)"),
        (dict(loss_fn=lambda output, target: 1.0), "the loss is float"),
        (dict(loss_fn=lambda output, target: output.detach().sum()), "without gradients"),
        (dict(dataloader=[{"inputs": torch.zeros(4, 12)}]), "no labels for the loss"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    model = mlp()
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match=message):
        GradProbe(model, MagnitudePruning()).prune(
            **(dict(dataloader=loader(), loss_fn=nn.CrossEntropyLoss(), sparsity=0.5, verbose=False) | changes)
        )
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    "parts, message",
    [
        ((mlp(), MagnitudePruning), "such as MagnitudePruning()"),
        ((mlp(), "magnitude"), "such as MagnitudePruning()"),
        (([], MagnitudePruning()), "got list"),
        ((mlp(), MagnitudePruning(), "gpu"), "cannot move to device 'gpu'"),
    ],
)
def test_parts_that_do_not_fit(parts, message):
    with pytest.raises(UsageError, match=message):
        GradProbe(*parts)


@pytest.mark.parametrize(
    "ask, message",
    [
        (dict(method="magnitude", allocation="owl"), "row, layer or global"),
        (dict(method="activation-norm"), "whole heads and neurons"),
        (dict(method="sparsegpt"), "gives no scores"),
    ],
)
def test_scores_that_cannot_propose(ask, message):
    with pytest.raises(UsageError, match=message):
        ScoreStrategy(**ask)


def test_a_strategy_that_needs_data_says_so():
    with pytest.raises(UsageError, match="call its prepare"):
        WandaPruning().select_weights_to_prune(mlp(), 0.5)


def test_units_that_are_not_whole_are_refused():
    class Rows(PruningStrategy):
        pattern = Pattern("neurons")

        def select_weights_to_prune(self, model, sparsity):
            return {
                name: torch.zeros_like(p, dtype=torch.bool).index_fill(0, torch.tensor([0]), True)
                for name, p in model.named_parameters()
                if name.endswith("intermediate.dense.weight")
            }

        def get_name(self):
            return "rows"

    with pytest.raises((UsageError, RunError), match="whole"):
        GradProbe(ARCHITECTURES["bert"](), Rows()).prune([batch("bert")], sparsity=0.5, **QUIET)


def test_layers_that_share_a_weight_count_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4))
    model[2].weight = model[0].weight
    probe = GradProbe(model, MagnitudePruning())
    assert (
        set(probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)) == {"0.weight", "4.weight"}
        and probe.get_sparsity() == 0.5
    )


def test_a_second_call_goes_on_from_what_is_zero_and_a_fresh_model_from_nothing():
    model = trained(3)
    dense, probe = copy.deepcopy(model.state_dict()), GradProbe(model, MagnitudePruning())
    first = probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    fewer = probe.prune(loader(), nn.CrossEntropyLoss(), 0.45, comparison="ratio", **QUIET)
    assert probe.get_sparsity() == 0.5 and all(torch.equal(first[name], fewer[name]) for name in first)
    more = probe.prune(loader(), nn.CrossEntropyLoss(), 0.75, comparison="ratio", **QUIET)
    assert probe.get_sparsity() == 0.75 and all((more[name] | ~first[name]).all() for name in first)
    model.load_state_dict(dense)
    again = probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    assert all(torch.equal(again[name], first[name]) for name in first)


@pytest.mark.parametrize(
    "strategy, comparison, threshold",
    [
        (ScoreStrategy("fisher", allocation="global"), "loss", 0.0),
        (ScoreStrategy("gradient"), "ratio", 0.0),
        (ScoreStrategy("gradient"), "rule", 1e9),
        (ScoreStrategy("random"), "rule", 1e9),
    ],
)
def test_rounds_never_take_more_than_asked_for(strategy, comparison, threshold):
    for seed in (0, 1):
        model = trained(2, seed=seed)

        def between(model, masks):
            optimizer = torch.optim.AdamW(model.parameters(), 0.01)
            for inputs, labels in loader():
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()

        probe = GradProbe(model, strategy)
        probe.prune(
            loader(),
            nn.CrossEntropyLoss(),
            0.6,
            gradient_threshold=threshold,
            comparison=comparison,
            rounds=4,
            schedule="linear",
            between=between,
            **QUIET,
        )
        sizes = [m.numel() for m in probe.masks.values()]
        assert probe.get_sparsity() <= 0.6 and (
            comparison == "rule" or probe.get_sparsity() >= sum(int(0.6 * n) for n in sizes) / sum(sizes)
        )


@pytest.mark.parametrize("method", ["gradprobe-ratio", "gradprobe-loss"])
@pytest.mark.parametrize("name", ["bert", "llama", "gpt_neo"])
def test_a_ranking_of_heads_has_something_to_decide(name, method):
    data, model = [batch(name, n=4)], ARCHITECTURES[name]()
    with torch.no_grad():  # one head of each block matters most and is the smallest, as far as weights say
        for group in (g for g in anatomy(model).groups if g.kind == "heads"):
            group.linears[group.consumer].weight[:, : group.columns] *= 1e-3
    ranked = prune(copy.deepcopy(model), calibration=data, method=method, pattern="heads", sparsity=0.5).masks
    every = prune(
        copy.deepcopy(model),
        calibration=data,
        method=method,
        pattern="heads",
        sparsity=0.5,
        options={"strategy": "random", "candidates": 0.5},
    ).masks
    assert all(int((~keep).sum()) * 2 == len(keep) for masks in (ranked, every) for keep in masks.units(model).values())
    assert all(
        torch.equal(ranked.keep[key], every.keep[key]) for key in ranked.keep
    )  # all heads are candidates where the strategy leaves no spare, whoever proposed


def test_the_shares_of_all_candidates_add_up_to_the_joint_change():
    "The trapezoid along the common path is exact for a quadratic loss."
    torch.manual_seed(1)
    model, squared = nn.Linear(3, 2, bias=False), loss_with(nn.MSELoss())
    data, masks = (
        [(torch.randn(5, 3), torch.randn(5, 2)) for _ in range(3)],
        {"weight": torch.tensor([[True, False, True], [False, True, True]])},
    )
    _, looks = next(evidence(model, data, squared, masks, ("change",), 0.25))
    share = looks["change"]
    before = sum(squared(model, b).item() for b in data)
    with torch.no_grad():
        model.weight[masks["weight"]] *= 0.25
    assert share[masks["weight"]].sum().item() == pytest.approx(
        before - sum(squared(model, b).item() for b in data), abs=1e-5
    )


def test_nothing_to_make_permanent():
    with pytest.raises(UsageError, match="call prune first"):
        GradProbe(mlp(), MagnitudePruning()).apply_mask_permanently()


@pytest.mark.parametrize(
    "ask, message",
    [
        (dict(pattern="2:4", sparsity=None), "Choose pattern unstructured or heads"),
        (dict(sequential=True), "needs gradients"),
        (dict(options={"strategy": "sparsegpt"}), "gives no scores"),
        (dict(options={"control": "fisher-search"}), "does not score weights"),
        (dict(options={"factor": 2}), r"in \[0, 1\)"),
        (dict(options={"control": "random"}, schedule="linear", rounds=2), "leave rounds out"),
        (dict(options={"strategy": "magnitud"}), "unknown method 'magnitud': did you mean 'magnitude'"),
        (dict(options={"growth": 2}), "options are by_layer, candidates, control, factor, strategy, threshold"),
        (dict(pattern="heads", allocation="macs"), "as much of each layer"),
        (dict(pattern="blocks"), "Choose pattern unstructured or heads"),
    ],
)
def test_requests_that_do_not_go_together(ask, message):
    model = ARCHITECTURES["llama"]()
    before = copy.deepcopy(model)
    with pytest.raises(UsageError, match=message):
        prune(model, calibration=[batch("llama")], method="gradprobe", **({"sparsity": 0.5} | ask))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))


def test_data_without_labels_and_gradients_without_numbers():
    model = ARCHITECTURES["bert"]()
    with pytest.raises(UsageError, match="no labels"):
        prune(
            model,
            calibration=[{k: v for k, v in batch("bert").items() if k != "labels"}],
            method="gradprobe",
            sparsity=0.5,
        )
    broken = trained(1)
    data = [(torch.full((4, 12), float("inf")), torch.zeros(4, dtype=torch.long))]
    before = copy.deepcopy(broken)
    with pytest.raises(RunError, match="not finite"):
        GradProbe(broken, MagnitudePruning()).prune(data, nn.CrossEntropyLoss(), 0.5, **QUIET)
    assert all(torch.equal(a, b) for a, b in zip(broken.parameters(), before.parameters(), strict=True))


def test_a_failure_in_the_second_look_puts_the_weights_back():
    model, calls = trained(1), []
    before = copy.deepcopy(model)

    def loss(output, target):
        calls.append(1)
        if len(calls) > 5:
            raise MemoryError("no room")
        return F.cross_entropy(output, target)

    with pytest.raises(MemoryError):
        GradProbe(model, MagnitudePruning()).prune(loader(), loss, 0.5, **QUIET)
    assert len(calls) == 6 and all(
        torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True)
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_model_moves_to_the_device_and_its_masks_with_it():
    probe = GradProbe(trained(2), MagnitudePruning(), device="cuda")
    masks = probe.prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="ratio", **QUIET)
    assert {m.device.type for m in masks.values()} == {"cuda"} and probe.get_sparsity() == 0.5


def test_convolutions_are_candidates_of_a_plain_module():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(40, 4))
    masks = GradProbe(model, MagnitudePruning()).prune(loader(), nn.CrossEntropyLoss(), 0.5, comparison="loss", **QUIET)
    assert {name: int(m.sum()) for name, m in masks.items()} == {"1.weight": 6, "4.weight": 80}
