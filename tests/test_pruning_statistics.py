"Statistics: against a loop over real tokens and one backward pass per example, and what must not matter."

import copy

import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from torch import nn
from torch.nn import functional as F

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.pruning.calibration import as_batches, calibration_hash
from pruneresearch.pruning.statistics import calibrate

NAMES = list(ARCHITECTURES)
FIELDS = (
    "norm",
    "mean",
    "gradient",
    "squared_gradient",
)  # the grouped gradient has its own oracle in test_methods_hebbian.py


def linears_of(model):
    "All linear layers, inside blocks or not, but none tied to the embedding (its gradient is not the layer's alone)."
    embedding = model.get_input_embeddings().weight
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.weight is not embedding
    }


def examples_of(data):
    "Each example alone, without its padding."
    for row in range(len(data["input_ids"])):
        real = data["attention_mask"][row].bool()
        labels = data["labels"][row : row + 1]
        yield {
            "input_ids": data["input_ids"][row : row + 1, real],
            "attention_mask": data["attention_mask"][row : row + 1, real],
            "labels": labels[:, real] if labels.dim() == 2 else labels,
        }


def rows(data, indices):
    return {key: value[indices] for key, value in data.items()}


def wider(data, extra, filler=0):
    "The same examples with more padding on the right; its token ids are arbitrary."
    n = len(data["input_ids"])
    more = {
        "input_ids": torch.full((n, extra), filler),
        "attention_mask": torch.zeros(n, extra, dtype=torch.long),
        "labels": torch.full((n, extra), -100),
    }
    return {key: torch.cat([value, more[key]], 1) if value.dim() == 2 else value for key, value in data.items()}


def oracle(model, data):
    "name → (norm, mean, gradient of the mean loss, sum of squared example gradients), each example alone."
    linears, model = linears_of(model), model.eval()
    squares = {name: torch.zeros(module.in_features, dtype=torch.float64) for name, module in linears.items()}
    inputs_of = {name: [] for name in linears}
    first = {name: torch.zeros(module.weight.shape, dtype=torch.float64) for name, module in linears.items()}
    second = {name: total.clone() for name, total in first.items()}

    def watch(name):
        def add(module, inputs):
            for token in inputs[0].detach().reshape(-1, module.in_features):
                squares[name] += token.double() ** 2
                inputs_of[name].append(token.double())

        return add

    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in linears.items()]
    count = 0
    for example in examples_of(data):
        logits = model(input_ids=example["input_ids"], attention_mask=example["attention_mask"]).logits
        loss = (
            F.cross_entropy(logits[0, :-1], example["labels"][0, 1:])
            if logits.dim() == 3
            else F.cross_entropy(logits, example["labels"])
        )
        weights = [module.weight for module in linears.values()]
        for name, gradient in zip(linears, torch.autograd.grad(loss, weights), strict=True):
            first[name] += gradient.double()
            second[name] += gradient.double() ** 2
        count += 1
    for hook in hooks:
        hook.remove()
    return {
        name: (squares[name].sqrt(), torch.stack(inputs_of[name]).mean(0), first[name] / count, second[name])
        for name in linears
    }


def far(a, b, floor=1e-6):
    "Relative distance of two tensors, but of one that ought to be zero (a key's bias moves no softmax) to `floor`."
    return ((a.double() - b.double()).norm() / b.double().norm().clamp(min=floor)).item()


def assert_same(found, expected, tolerance=1e-4):
    assert found.keys() == expected.keys()
    for name in expected:
        for field in FIELDS:
            distance = far(getattr(found[name], field), getattr(expected[name], field))
            assert distance < tolerance, f"{field} of {name}: {distance:.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_examples_alone(name):
    model, data = ARCHITECTURES[name](), batch(name, n=5, padded=True)
    assert (data["attention_mask"] == 0).any()
    found = calibrate(model, [data], linears_of(model))
    for linear, expected in oracle(model, data).items():
        for field, value in zip(FIELDS, expected, strict=True):
            got = getattr(found[linear], field)
            assert got.shape == value.shape and got.dtype == torch.float32
            assert far(got, value) < 1e-4, f"{field} of {linear}: {far(got, value):.1e}"


@pytest.mark.parametrize("name", NAMES)
def test_batches_padding_and_order_do_not_matter(name):
    model, data = ARCHITECTURES[name](), batch(name, n=6, padded=True, seed=1)
    linears = linears_of(model)
    found = calibrate(model, [data], linears)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    filler = 1 if name in ("roberta", "opt") else 0
    for batches in (
        [rows(data, [i]) for i in range(6)],
        [rows(data, slice(0, 5)), rows(data, slice(5, 6))],  # batch split
        list(examples_of(data)),  # no padding
        [wider(data, 7, filler)],
        [rows(data, [0, 1, 2]), wider(rows(data, [3, 4, 5]), 3, filler)],  # more padding
        [rows(data, order)],
        iter([data]),
    ):  # order; any iterable
        assert_same(calibrate(model, batches, linears), found)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n, length", [(6, 6), (2, 4), (4, 3), (1, 5), (5, 1)])
def test_shapes_that_could_be_taken_for_another(name, n, length):
    "As many examples as tokens, one example, one token: sizes from which (batch, tokens) could be guessed wrongly."
    if length == 1 and name in DECODERS:
        pytest.skip("one token predicts nothing")
    model, data = ARCHITECTURES[name](), batch(name, n=n, length=length)
    if length > 2:
        data["attention_mask"][0, -1] = 0
    if length > 2 and name in DECODERS:
        data["labels"][0, -1] = -100
    if length > 2:
        data["input_ids"][0, -1] = 1 if name in ("roberta", "opt") else 0
    found, expected = calibrate(model, [data], linears_of(model)), oracle(model, data)
    for i, field in enumerate(FIELDS):
        largest = max(
            values[i].norm().item() for values in expected.values()
        )  # with one key a softmax is flat: rounding of what passes by is all there is
        for linear, values in expected.items():
            assert far(getattr(found[linear], field), values[i], largest / 100) < 1e-4, f"{field} of {linear}"


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_weights_give_single_precision_statistics(name):
    model, data = ARCHITECTURES[name](), batch(name, padded=True)
    exact = calibrate(model, [data], linears_of(model))
    half = model.to(torch.bfloat16)
    found = calibrate(half, [data], linears_of(half))
    for linear, statistics in found.items():
        assert all(getattr(statistics, field).dtype == torch.float32 for field in FIELDS)
        assert far(statistics.norm, exact[linear].norm) < 0.05, linear
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())


def test_norms_of_many_half_precision_tokens_do_not_stall():
    "A sum in bfloat16 stops growing at 256 ones."

    class Ones(nn.Module):
        def __init__(self):
            super().__init__()
            self.line = nn.Linear(1, 1).to(torch.bfloat16)

        def forward(self, inputs):
            return self.line(inputs)

    model = Ones()
    for value in (1.0, 1.0078125):  # the second one's square is no bfloat16
        ones = [{"inputs": torch.full((1, 1), value, dtype=torch.bfloat16)}] * 400
        assert calibrate(model, ones, {"line": model.line}, needs={"norm"})["line"].norm.item() == pytest.approx(
            20 * value
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(name, fails):
    model, data = ARCHITECTURES[name](), batch(name, padded=True)
    for i, module in enumerate(model.modules()):
        module.training = i % 3 == 0
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        if i % 4 == 0:
            parameter.grad = torch.full_like(parameter, 7.0)

    def state():
        return (
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
            [None if p.grad is None else p.grad.unique().tolist() for p in model.parameters()],
            model.config.to_dict(),
        )

    before, weights = state(), copy.deepcopy(model.state_dict())
    if fails:
        broken = wider(data, 200)  # longer than the context or with an unknown token: no architecture here runs it
        broken["input_ids"][0, 0] = 10_000
        with pytest.raises((IndexError, RuntimeError, ValueError)):
            calibrate(model, [data, broken], linears_of(model))
    else:
        calibrate(model, [data], linears_of(model))
    assert state() == before
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_dropout_is_off_and_frozen_weights_have_statistics(name):
    model, data = ARCHITECTURES[name](), batch(name, padded=True)
    found = calibrate(model, [data], linears_of(model))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train().requires_grad_(False)
    assert_same(calibrate(model, [data], linears_of(model)), found, 1e-6)
    with torch.no_grad():
        assert_same(calibrate(model, [data], linears_of(model)), found, 1e-6)


def test_only_what_is_needed_is_computed():
    model, data = ARCHITECTURES["bert"](), batch("bert")
    linears = linears_of(model)
    every = calibrate(model, [data], linears)
    for field in FIELDS:
        one = calibrate(model, [data], linears, needs={field})
        for statistics, whole in zip(one.values(), every.values(), strict=True):
            assert torch.allclose(getattr(statistics, field), getattr(whole, field), rtol=1e-4, atol=1e-7)
            assert all(getattr(statistics, other) is None for other in FIELDS if other != field)
    unlabelled = {key: value for key, value in data.items() if key != "labels"}
    norms = calibrate(model, [unlabelled], linears, needs={"norm"})
    inside = [name for name in linears if "encoder" in name]
    assert inside and all(torch.allclose(norms[name].norm, every[name].norm) for name in inside)
    for field in ("gradient", "squared_gradient"):
        with pytest.raises(UsageError, match="label"):
            calibrate(model, [unlabelled], linears, needs={field})


def test_a_layer_that_the_loss_does_not_reach_has_gradient_zero():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, inputs):
            self.unused(inputs)
            return self.used(inputs)

    model = Two()
    found = calibrate(
        model,
        [{"inputs": torch.randn(4, 3), "labels": torch.tensor([0, 1, 0, 1])}],
        {"used": model.used, "unused": model.unused},
    )
    used, unused = found["used"], found["unused"]
    assert not unused.gradient.any() and not unused.squared_gradient.any() and unused.norm.all()
    assert used.gradient.any() and used.squared_gradient.any()


def test_bad_calibration_sets():
    model = ARCHITECTURES["llama"]()
    with pytest.raises(UsageError):
        calibrate(model, [], linears_of(model))
    model.model.layers[0].mlp.up_proj.weight.data.fill_(float("nan"))
    with pytest.raises(RunError):
        calibrate(model, [batch("llama")], linears_of(model), needs={"gradient"})


def test_batches_from_token_ids():
    ids = torch.randint(3, 99, (7, 5), generator=torch.Generator().manual_seed(0))
    batches = as_batches(ids, 3)
    assert [len(b["input_ids"]) for b in batches] == [3, 3, 1]
    for key in ("input_ids", "labels"):
        assert torch.equal(torch.cat([b[key] for b in batches]), ids)
    model = ARCHITECTURES["llama"]()
    by_hand = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    assert_same(calibrate(model, batches, linears_of(model)), calibrate(model, [by_hand], linears_of(model)))
    given = [batch("bert"), batch("bert", seed=1)]
    kept = as_batches(iter(given))
    assert len(kept) == 2 and all(torch.equal(a[key], b[key]) for a, b in zip(kept, given, strict=True) for key in b)
    for wrong in (torch.zeros(3), torch.zeros(2, 3, 4, dtype=torch.long)):
        with pytest.raises(UsageError):
            as_batches(wrong)


def test_calibration_hash_names_the_real_tokens():
    data = batch("llama", n=6, padded=True)
    name = calibration_hash([data])
    assert len(name) == 16 and int(name, 16) >= 0
    same = (
        [rows(data, [i]) for i in range(6)],
        [rows(data, slice(0, 4)), rows(data, slice(4, 6))],
        list(examples_of(data)),
        [wider(data, 9)],
        [wider(data, 9, filler=5)],
    )
    assert {calibration_hash(batches) for batches in same} == {name}
    changed = copy.deepcopy(data)
    changed["input_ids"][3, 0] += 1
    shorter = copy.deepcopy(data)
    shorter["attention_mask"][0, 1:] = 0
    shorter["labels"][0, 1:] = -100
    assert data["attention_mask"][0].sum() > 1
    others = ([changed], [shorter], [rows(data, slice(0, 5))], [data, data])
    assert len({name} | {calibration_hash(batches) for batches in others}) == 5


def test_calibration_hash_knows_where_an_example_ends():
    "The same tokens in the same order, cut into other examples."
    assert calibration_hash(as_batches(torch.arange(12).reshape(2, 6))) != calibration_hash(
        as_batches(torch.arange(12).reshape(3, 4))
    )
