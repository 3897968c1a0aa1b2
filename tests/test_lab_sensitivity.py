"Sensitivity: against layers that are zeroed by hand in a copy, against `prune`, and the model stays as it was."

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from torch import nn
from torch.nn import functional as F

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.lab.sensitivity import (
    loss_batches,
    losses,
    require_apart,
    sensitivity,
    sensitivity_map,
    shares_from,
    weighted_mean,
)
from pruneresearch.model.loading import load_model
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.engine import prune

NAMES = list(ARCHITECTURES)
GROUPED = ("llama", "mistral", "qwen2")
made = functools.cache(lambda name: ARCHITECTURES[name]())
ROLES = {
    "q": ("q_proj", "query", "q_lin"),
    "k": ("k_proj", "key", "k_lin"),
    "v": ("v_proj", "value", "v_lin"),
    "o": ("o_proj", "out_proj", "attention.output.dense", "out_lin"),
    "gate": ("gate_proj",),
    "up": ("up_proj",),
    "down": ("down_proj",),
    "fc1": ("fc1", "intermediate.dense", "lin1", "c_fc"),
    "fc2": ("fc2", "output.dense", "lin2", "c_proj"),
}


def calibration(name):
    return [batch(name, n=6, padded=True, seed=1)]


def held_out(name):
    return [batch(name, n=5, padded=True, seed=2)]


def bytes_of(tensor):
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def snapshot(model):
    "All numbers of a model as bytes, and what else a measurement could leave behind."
    return (
        {name: bytes_of(value) for name, value in model.state_dict().items()},
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad) for p in model.parameters()],
        [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
    )


# The oracle: the loss is transformers' own on the whole batch, layers are found by names, inputs by a hook.


def loss_of(model, data):
    with torch.no_grad():
        return float(model(**data).loss)


def layers_of(model):
    "(block, role) → layer."
    found = {}
    for name, module in model.named_modules():
        numbers = [part for part in name.split(".") if part.isdigit()]
        if not isinstance(module, nn.Linear) or not numbers:
            continue
        role = next(
            role
            for role, ends in ROLES.items()
            if any(name.endswith(end) for end in ends) and not (role == "fc2" and "attention.output" in name)
        )
        found[int(numbers[0]), role] = module
    return found


def input_norm(model, linear, data):
    "The L2 norm of each input over the real tokens."
    inputs_seen = []
    handle = linear.register_forward_pre_hook(
        lambda module, inputs: inputs_seen.append(inputs[0].detach().reshape(*data["input_ids"].shape, -1))
    )
    with torch.no_grad():
        model(**data)
    handle.remove()
    return inputs_seen[0][data["attention_mask"].bool()].double().norm(dim=0)


def wanda_of(model, linear, data):
    return (linear.weight.detach().double().abs() * input_norm(model, linear, data)).numpy()


def zero_lowest(linear, scores, sparsity):
    "Set the lowest of each row to zero, by a plain sort."
    with torch.no_grad():
        for row, values in zip(linear.weight, scores, strict=True):
            for i in sorted(range(len(values)), key=lambda i: values[i])[: int(sparsity * len(values))]:
                row[i] = 0


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_every_layout(name):
    model, data = made(name), held_out(name)[0]
    before, where = snapshot(model), layers_of(model)
    table = sensitivity(model, calibration=calibration(name), data=[data], sparsity=[0.3])
    assert snapshot(model) == before
    assert list(zip(table["block"], table["role"], strict=True)) == [
        key for key in sorted(where, key=lambda key: (key[0], list(ROLES).index(key[1])))
    ] and set(table["sparsity"]) == {0.3}
    dense = loss_of(model, data)
    assert table["dense"].tolist() == pytest.approx([dense] * len(table), abs=1e-5)
    assert (table["increase"].abs() > 1e-4).mean() > 0.8  # there is something to find
    for line in table.itertuples():
        other = copy.deepcopy(model)
        linear = layers_of(other)[line.block, line.role]
        zero_lowest(linear, wanda_of(model, where[line.block, line.role], calibration(name)[0]), line.sparsity)
        assert line.loss == pytest.approx(loss_of(other, data), abs=1e-5), line
        assert line.increase == pytest.approx(line.loss - line.dense, abs=1e-12)
        assert (line.weights, line.removed) == (linear.weight.numel(), int((linear.weight == 0).sum()))
        assert line.removed == len(linear.weight) * int(0.3 * linear.in_features) and line.per_million == pytest.approx(
            line.increase / line.removed * 1e6
        )
        assert dict(model.named_modules())[line.layer] is where[line.block, line.role]
    assert set(table["unit"]) == {"nats per token" if name in DECODERS else "nats per example"}


def span(unit, size):
    return slice(unit * size, (unit + 1) * size)


def owned_scores(scores, block, rows, consumer, columns, unit):
    "The scores of all weights of a unit: its rows in the producers, its columns in the consumer."
    produced = [scores[block, role][span(unit, size)].ravel() for role, size in rows.items()]
    return np.concatenate([*produced, scores[block, consumer][:, span(unit, columns)].ravel()])


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_heads_and_neurons(name):
    """Units by the sizes in tests/architectures.py: heads of 8 rows, two query heads to a key head where grouped.
    A unit's score is the mean Wanda score of what it owns; biases go too."""
    model, data = made(name), held_out(name)[0]
    before = snapshot(model)
    table = sensitivity(model, calibration=calibration(name), data=[data], pattern="heads+neurons", sparsity=0.5)
    assert (
        snapshot(model) == before
        and list(table["role"]) == ["heads", "neurons"] * (len(table) // 2)
        and table["block"].tolist() == sorted(table["block"])
    )
    scores = {key: wanda_of(model, linear, calibration(name)[0]) for key, linear in layers_of(model).items()}
    for line in table.itertuples():
        other = copy.deepcopy(model)
        heads, wide = line.role == "heads", 16 if name in GROUPED else 8
        rows = (
            {"q": wide, "k": 8, "v": 8} if heads else dict.fromkeys(("gate", "up") if name in GROUPED else ("fc1",), 1)
        )
        consumer, columns = ("o", wide) if heads else ("down" if name in GROUPED else "fc2", 1)
        count = scores[line.block, consumer].shape[1] // columns
        owned = [owned_scores(scores, line.block, rows, consumer, columns, unit) for unit in range(count)]
        means, layers, gone = [own.mean() for own in owned], layers_of(other), 0
        with torch.no_grad():
            for unit in np.argsort(means, kind="stable")[: count // 2]:
                for role, size in rows.items():
                    layers[line.block, role].weight[span(unit, size)] = 0
                    if layers[line.block, role].bias is not None:
                        layers[line.block, role].bias[span(unit, size)] = 0
                layers[line.block, consumer].weight[:, span(unit, columns)] = 0
                gone += len(owned[unit])
        assert line.loss == pytest.approx(loss_of(other, data), abs=1e-5), line
        assert (line.removed, line.weights) == (gone, 2 * gone)


def belongs(key, line):
    "Whether a parameter is one of a line of the table."
    attention = "attention.self" in key or "attention.output.dense" in key or "self_attn" in key
    units = line.role in ("heads", "neurons")
    return key.startswith(line.layer + ".") and (not units or attention == (line.role == "heads"))


@pytest.mark.parametrize(
    "method, pattern, sparsity",
    [
        ("random", "unstructured", 0.5),
        ("magnitude", "unstructured", 0.3),
        ("taylor", "unstructured", 0.5),
        ("wanda", "2:4", 0.5),
        ("magnitude", "1:4", 0.75),
        ("sparsegpt", "unstructured", 0.5),
        ("sparsegpt", "2:4", 0.5),
        ("weight-range", "neurons", 0.5),
        ("activation-norm", "heads", 0.5),
    ],
)
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_cut_is_what_prune_does_to_that_layer(name, method, pattern, sparsity):
    model, data, pruned = made(name), held_out(name)[0], copy.deepcopy(made(name))
    before = snapshot(model)
    table = sensitivity(
        model, calibration=calibration(name), data=[data], method=method, pattern=pattern, sparsity=sparsity, seed=5
    )
    assert snapshot(model) == before
    masks = prune(
        pruned,
        calibration=calibration(name),
        method=method,
        pattern=pattern,
        sparsity=sparsity,
        sequential=None if method in ("random", "magnitude", "taylor", "weight-range") else False,
        seed=5,
    ).masks
    for line in table.itertuples():
        other, source = copy.deepcopy(model), pruned.state_dict()
        own = {key for key in [*source, *masks.keep] if belongs(key, line)}
        other.load_state_dict({key: source[key] if key in own else value for key, value in model.state_dict().items()})
        assert line.loss == pytest.approx(loss_of(other, data), abs=1e-5), line
        removed = [int((~keep).sum()) for key, keep in masks.keep.items() if key in own and keep.dim() > 1]
        assert line.removed == sum(removed)


@pytest.mark.parametrize("method", ["wanda", "random", "sparsegpt"])
def test_several_sparsities_are_as_many_calls(method):
    "The statistics serve them all: nothing is used up, nothing is left over."
    ask = dict(calibration=calibration("llama"), data=held_out("llama"), method=method)
    together = sensitivity(made("llama"), sparsity=[0.5, 0.25], **ask)
    for sparsity in (0.25, 0.5):
        alone = sensitivity(made("llama"), sparsity=sparsity, **ask)
        pd.testing.assert_frame_equal(together[together["sparsity"] == sparsity].reset_index(drop=True), alone)


def test_nothing_removed_is_nothing_lost():
    table = sensitivity(made("bert"), calibration=calibration("bert"), data=held_out("bert"), sparsity=0)
    assert (table["increase"] == 0).all() and (table["removed"] == 0).all() and table["per_million"].isna().all()


# The model is left as it was.


class Stopped(Exception):
    pass


@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
@pytest.mark.parametrize("request_", [dict(), dict(pattern="heads+neurons"), dict(method="sparsegpt")], ids=str)
def test_a_loss_that_fails_leaves_the_model_alone(error, request_):
    model, calls = ARCHITECTURES["bert"](), []
    model.train()
    list(model.modules())[5].eval()
    with torch.no_grad():
        next(model.parameters())[0, :2] = torch.tensor([-0.0, 0.0])
    before, changed = snapshot(model), []

    def loss(model, batch):
        calls.append(1)
        assert not model.training
        changed.append(snapshot(model)[0] != before[0])
        if len(calls) == 4:
            raise error
        return torch.full((len(batch["labels"]),), 1.0)

    with pytest.raises(error):
        sensitivity(model, calibration=calibration("bert"), data=held_out("bert"), loss=loss, **request_)
    assert changed == [False, True, True, True]  # the dense loss, and three cuts
    assert snapshot(model) == before


def test_half_precision_comes_back_too():
    model = ARCHITECTURES["llama"]().bfloat16()
    before = snapshot(model)
    table = sensitivity(model, calibration=calibration("llama"), data=held_out("llama"))
    assert snapshot(model) == before and np.isfinite(table["loss"]).all()


# The loss.


@pytest.mark.parametrize("name", ["bert", "llama", "opt"])
def test_batches_do_not_matter(name):
    "Windows of different lengths weigh as many tokens as are predicted in them."
    model, data = made(name), held_out(name)[0]
    whole = losses(model, [data])
    for cuts in ([1] * 5, [2, 3], [4, 1]):
        columns = zip(*(value.split(cuts) for value in data.values()), strict=True)
        parts = [dict(zip(data, values, strict=True)) for values in columns]
        found = losses(model, parts)
        assert torch.allclose(found[0], whole[0], atol=1e-5) and torch.equal(found[1], whole[1])
    assert weighted_mean(*whole) == pytest.approx(loss_of(model, data), abs=1e-5)
    assert whole[1].tolist() == ((data["labels"][:, 1:] != -100).sum(1).tolist() if name in DECODERS else [1] * 5)
    assert name not in DECODERS or len(set(whole[1].tolist())) > 1  # else the weights would not be tested
    ids = batch(name, n=7, seed=3)["input_ids"]
    if name in DECODERS:
        tables = [sensitivity(model, calibration=ids[:3], data=ids[3:], batch_size=size) for size in (1, 4)]
        assert np.allclose(tables[0]["increase"], tables[1]["increase"], atol=1e-5)


def test_standard_errors_are_paired():
    ids = batch("llama", n=9, seed=3)["input_ids"]
    model = made("llama")
    table = sensitivity(model, calibration=ids[:3], data=ids[3:], method="magnitude")
    other = copy.deepcopy(model)
    linear = layers_of(other)[1, "up"]
    flat = linear.weight.detach().flatten().abs().tolist()
    with torch.no_grad():
        linear.weight.view(-1)[sorted(range(len(flat)), key=lambda i: flat[i])[: len(flat) // 2]] = 0
    differences = [
        loss_of(other, dict(input_ids=row[None], labels=row[None]))
        - loss_of(model, dict(input_ids=row[None], labels=row[None]))
        for row in ids[3:]
    ]
    line = table[(table["block"] == 1) & (table["role"] == "up")].iloc[0]
    assert line["increase"] == pytest.approx(np.mean(differences), abs=1e-5)
    assert line["error"] == pytest.approx(np.std(differences, ddof=1) / 6**0.5, rel=1e-2)


def test_a_plain_module_with_its_own_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    x, y = torch.randn(8, 6), torch.randn(8, 3)
    before = snapshot(model)
    table = sensitivity(
        model,
        calibration=[{"inputs": torch.randn(4, 6)}],
        data=[{"inputs": x, "target": y}],
        loss=lambda model, batch: (model(batch["inputs"]) - batch["target"]).abs().sum(1),
        method="magnitude",
        sparsity=[0.4],
    )
    assert snapshot(model) == before and table[["block", "role", "layer", "weights", "removed"]].values.tolist() == [
        [0, "linear", "0", 30, 12],
        [1, "linear", "2", 15, 6],
    ]
    first, second = (model[i].weight.detach().clone() for i in (0, 2))

    def forward(a, b):
        hidden = torch.tanh(x @ a.T + model[0].bias)
        return float((hidden @ b.T + model[2].bias - y).detach().abs().sum(1).mean())

    def cut(w, k):
        return w.flatten().scatter(0, w.flatten().abs().argsort()[:k], 0.0).view(w.shape)

    assert table["dense"].iloc[0] == pytest.approx(forward(first, second), rel=1e-5)
    assert table["loss"].tolist() == pytest.approx(
        [forward(cut(first, 12), second), forward(first, cut(second, 6))], rel=1e-5
    )
    assert set(table["unit"]) == {"per example"}


def test_a_task_gives_the_selection_split():
    "Calibration from train, the loss from selection, the test split is never read."
    task, model = load_task("digits"), load_model("mlp")

    def place(split):
        return {tuple(vector) for vector in task.splits[split]["vector"]}

    held = torch.cat([batch["inputs"] for batch in loss_batches(model, task, n=40, seed=1)])
    assert len(held) == 40 and {tuple(row) for row in held.tolist()} <= place("selection")
    assert not torch.equal(held, torch.cat([batch["inputs"] for batch in loss_batches(model, task, n=40, seed=2)]))
    task.splits.pop("test")
    table = sensitivity(model, task, n_calibration=16, n_loss=40, seed=1)
    labels = torch.cat([batch["labels"] for batch in loss_batches(model, task, n=40, seed=1)])
    with torch.no_grad():
        assert table["dense"].iloc[0] == pytest.approx(float(F.cross_entropy(model(held), labels)), abs=1e-6)
    assert len(sensitivity(model, task, n_calibration=16, n_loss=10**6)) == 3 and (
        table["model"].iloc[0],
        table["task"].iloc[0],
    ) == ("mlp", "digits")


# Refusals.

LLAMA = dict(calibration=batch("llama", n=4, seed=1)["input_ids"], data=batch("llama", n=4, seed=2)["input_ids"])


@pytest.mark.parametrize(
    "request_, message",
    [
        (dict(method="wandda"), "did you mean 'wanda'"),
        (
            dict(method="gumbel"),
            "'gumbel' decides about the whole model, not about one layer: choose .*magnitude.*sparsegpt.*wanda",
        ),
        (dict(method="block-influence", pattern="heads"), "choose activation-.*or weight-range"),
        (dict(method="weight-range"), "chooses whole heads and neurons"),
        (dict(method="sparsegpt", pattern="neurons"), "chooses single weights"),
        (dict(sparsity=50), r"in \[0, 1\), got 50: for 50 % say 0.5"),
        (dict(sparsity=[0.5, 1.0]), r"in \[0, 1\), got 1.0"),
        (dict(sparsity=[]), "list of sparsities is empty"),
        (dict(sparsity="0.5"), r"got '0.5'"),
        (dict(sparsity=[[0.5, 0.5, 0.5]]), "must be a fraction"),
        (dict(pattern="2:4", sparsity=0.25), "pattern 2:4 has sparsity 0.5"),
        (dict(pattern="3:5"), "divisible by 5"),
        (dict(pattern="blocks"), "'blocks' removes whole blocks"),
        (dict(pattern="heads", sparsity=0.25), "removes none of the heads"),
        (dict(pattern="tiles"), "unknown pattern"),
        (dict(data=None), "the loss needs data: give a task"),
        (dict(calibration=None), "'wanda' needs data"),
        (dict(data=LLAMA["data"][0]), "^data token ids must be integers"),
        (dict(data=[]), "there are no data for the loss"),
        (dict(n_loss=0), "n_loss must be a whole number from 1"),
        (dict(batch_size=0), "batch_size must be a whole number from 1"),
        (dict(data=torch.cat([LLAMA["data"], LLAMA["calibration"][:2]])), "2 examples in common"),
        (dict(loss=lambda model, batch: model(**batch).loss), r"of 4 examples is \(\): give one number per example"),
        (dict(loss=lambda model, batch: 1.0), "is float: give one number"),
        (dict(data=[{"input_ids": LLAMA["data"]}]), "data for the loss have no labels"),
        (dict(data=[{"input_ids": LLAMA["data"], "labels": LLAMA["data"][:, 0]}]), "one label per token"),
    ],
)
def test_refusals(request_, message):
    before = snapshot(made("llama"))
    with pytest.raises(UsageError, match=message) as error:
        sensitivity(made("llama"), **LLAMA | request_)
    assert "\n" not in str(error.value) and str(error.value).endswith(".") and snapshot(made("llama")) == before


def test_refusals_about_the_model():
    with pytest.raises(UsageError, match="needs mlp, but"):
        sensitivity(made("bert"), load_task("digits"))
    bare = made("bert").bert
    with pytest.raises(UsageError, match="BertModel has no head that gives a loss"):
        sensitivity(bare, calibration=calibration("bert"), data=held_out("bert"))
    with pytest.raises(UsageError, match="one label per example"):
        sensitivity(made("bert"), **{**LLAMA})
    with pytest.raises(UsageError, match="needs transformer blocks"):
        sensitivity(
            SimpleMLP(8, (8,), 2),
            calibration=[{"inputs": torch.rand(4, 8)}],
            data=[{"inputs": torch.rand(4, 8), "labels": torch.zeros(4).long()}],
            pattern="heads",
        )
    broken = ARCHITECTURES["llama"]()
    with torch.no_grad():
        broken.lm_head.weight[0] = torch.nan
    with pytest.raises(RunError, match="loss is not finite"):
        sensitivity(broken, **LLAMA)


def test_examples_in_common_are_found_in_any_batch():
    "Padding and labels make no other example of it."
    data = batch("bert", n=4, padded=True)
    row = int(data["attention_mask"].sum(1).argmin())
    real = data["attention_mask"][row].bool()
    with pytest.raises(UsageError, match="have 1 example in common"):
        require_apart(
            [data],
            [
                {
                    "input_ids": data["input_ids"][row : row + 1, real],
                    "attention_mask": data["attention_mask"][row : row + 1, real],
                }
            ],
        )
    require_apart([data], [batch("bert", n=4, seed=9)])
    require_apart([{"own": torch.ones(2, 3)}], [{"own": torch.zeros(2, 3)}])


# The map, and the shares.


def table_of(increases, sparsity=0.5, roles=("q", "k"), error=0.0, **changes):
    "A table from a list of rows of increases, one row per block."
    return pd.DataFrame(
        [
            dict(
                model="m",
                task="t",
                method="wanda",
                pattern="unstructured",
                sparsity=sparsity,
                block=b,
                role=role,
                layer=f"{b}.{role}",
                weights=100,
                removed=int(100 * sparsity),
                increase=value,
                error=error,
                unit="nats per token",
            )
            | changes
            for b, row in enumerate(increases)
            for role, value in zip(roles, row, strict=False)
        ]
    )


def test_the_map_draws_the_numbers():
    first, second = [[1.0, 0.002], [-0.5, 0.1]], [[0.2, 0.0004], [0.03, 0.3]]
    figure = sensitivity_map(pd.concat([table_of(first, 0.5), table_of(second, 0.25, error=0.02)]))
    *axes, bar = figure.axes
    assert [axis.get_title(loc="left") for axis in axes] == [
        "wanda, unstructured at 50 %",
        "wanda, unstructured at 25 %",
    ] and "m on t" in figure._suptitle.get_text()
    assert [[text.get_text() for text in axis.texts] for axis in axes] == [
        ["1.00", "0.00", "-0.50", "0.10"],
        ["0.200", "(0.000)", "(0.030)", "0.300"],
    ]
    shown = [axis.collections[0].get_array().reshape(2, 2) for axis in axes]
    low = 0.002 / 1.2  # the smallest that is not below a thousandth of the largest
    assert np.allclose(shown[0], np.clip(first, low, 1)) and np.allclose(shown[1], np.clip(second, low, 1))
    colours = [axis.collections[0].to_rgba(0.1) for axis in axes]
    assert colours[0] == colours[1]  # one scale
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["q", "k"] and [
        label.get_text() for label in axes[0].get_yticklabels()
    ] == ["0", "1"]
    assert (
        axes[0].get_xlabel() == "linear layer"
        and axes[0].get_ylabel() == "block"
        and axes[0].get_ylim()[0] > axes[0].get_ylim()[1]
    )  # block 0 on top
    assert (
        bar.get_ylabel() == "increase of loss,\nnats per token"
        and "two standard errors" in figure.texts[-1].get_text() + figure._supxlabel.get_text()
    )
    assert figure.get_facecolor() == (1, 1, 1, 1)


@pytest.mark.parametrize("increases", [[[0.0, 0.0]], [[-1.0, -2.0]], [[3.0]], [[1e-9, 1e3]], [[np.nan, 1.0]]])
def test_any_table_can_be_drawn(increases, tmp_path):
    figure = sensitivity_map(table_of(increases))
    figure.savefig(tmp_path / "map.png")


def test_kinds_of_units_and_plain_layers_have_their_own_axes():
    units = sensitivity(made("bert"), calibration=calibration("bert"), data=held_out("bert"), pattern="heads+neurons")
    assert sensitivity_map(units).axes[0].get_xlabel() == "units that go"
    plain = table_of([[1.0], [2.0]], roles=("linear",), task="")
    axis = sensitivity_map(plain).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "0.linear",
        "1.linear",
    ] and axis.get_ylabel() == "linear layer"


def test_maps_that_are_refused():
    table = table_of([[1.0, 2.0]])
    for bad, message in (
        (table.drop(columns="role"), "no column 'role'"),
        ([1], "no column 'model'"),
        (table[:0], "table is empty"),
        (pd.concat([table, table]), "two lines for the same layer"),
        (pd.concat([table, table_of([[1.0, 2.0]], task="u", unit="nats per example")]), "cannot share a scale"),
    ):
        with pytest.raises(UsageError, match=message):
            sensitivity_map(bad)


def test_shares_keep_the_mean_and_the_order():
    random = np.random.default_rng(0)
    for blocks in (1, 2, 5, 32):
        for sparsity in (0, 0.001, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999):
            increases = np.exp(random.normal(size=(blocks, 2)) * 3)
            increases[random.random((blocks, 2)) < 0.1] *= -1
            shares = shares_from(table_of(increases), sparsity)
            assert (
                len(shares) == blocks
                and all(0 <= share < 1 for share in shares)
                and np.mean(shares) == pytest.approx(sparsity, abs=1e-12)
            )
            cost = np.maximum(increases.sum(1), increases.sum(1).max() / 1000)
            order = np.argsort(cost)
            assert (np.diff(np.array(shares)[order]) <= 1e-12).all()  # who suffers more keeps more
            if blocks > 1 and 0.2 < sparsity < 0.8:
                assert max(shares) - min(shares) == pytest.approx(0.16)


def test_shares_follow_the_formula():
    table = pd.concat([table_of([[1e-3, 0], [1e-2, 1e-2], [0.5, 0.5]], 0.3), table_of([[1, 1], [1, 1], [1, 2]], 0.9)])
    depth = np.log([1e-3, 2e-2, 1.0])
    less = 0.1 * (depth - depth[0]) / (depth[2] - depth[0])
    assert np.allclose(shares_from(table, 0.5, span=0.1), 0.5 + less.mean() - less)  # 0.3 is nearer than 0.9
    assert (
        np.ptp(shares_from(table, 0.7)) == pytest.approx(0.16)
        and shares_from(table, 0.7)[0] == shares_from(table, 0.7)[1]
    )  # and now it is not
    unequal = table_of([[1.0, 0.0], [3.0, 0.0]]).assign(weights=[100, 100, 300, 300])
    assert np.average(shares_from(unequal, 0.4), weights=[200, 600]) == pytest.approx(0.4, abs=1e-12)


def test_shares_go_into_prune():
    model = ARCHITECTURES["llama"]()
    shares = shares_from(sensitivity(model, calibration=calibration("llama"), data=held_out("llama")), 0.5)
    result = prune(model, calibration=calibration("llama"), method="wanda", sparsity=shares)
    assert result.achieved == pytest.approx(0.5, abs=1e-3) and len(set(shares)) == 3


def test_shares_that_are_refused():
    table = table_of([[1.0, 2.0], [2.0, 3.0]])
    for call, message in (
        (lambda: shares_from(table, 1.0), "fraction in"),
        (lambda: shares_from(table, 0.5, span=0), "span must be a fraction between 0 and 1"),
        (lambda: shares_from(table.assign(pattern="2:4"), 0.5), "pattern '2:4'"),
        (lambda: shares_from(pd.concat([table, table.assign(method="magnitude")]), 0.5), "one method"),
        (lambda: shares_from(table.assign(removed=0), 0.5), "nothing was removed"),
        (lambda: shares_from(None, 0.5), "no column 'model'"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
