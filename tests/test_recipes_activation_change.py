"Activation change: each defect of circulating code is built here, fails the check, and is absent from ours."

import copy
import json

import pytest
import torch
from architectures import ARCHITECTURES, batch
from sklearn.metrics import precision_score
from torch import nn

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.measure.cost import inference_bytes, latency, measured, parameter_counts
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.pruning.statistics import calibrate
from pruneresearch.recipes.activation_change import (
    LayerTracker,
    NeuronTracker,
    ResourceLogger,
    apply_pruning_to_model,
    compute_metrics,
    create_optimizer,
    fine_tune_and_evaluate,
    generate_pruning_mask,
    measure_model,
    set_seed,
    track,
    unit_masks_by_rule,
    update_output_dense_layer,
)
from pruneresearch.shipping.surgery import remove
from pruneresearch.training.recovery import recover

NAMES = list(ARCHITECTURES)
RULES = dict(attention_quantiles=0.5, intermediate_quantiles=0.5)


def two(name, n=3, length=10):
    return [batch(name, n=n, length=length, padded=True, seed=seed) for seed in (0, 1)]


# The rule itself, against an oracle written from the formula.


def oracle(model, name, first, second):
    "Neuron → mean over real (example, token) pairs of |a(second) − a(first)| of a linear, one number at a time."
    layer, caught = dict(model.named_modules())[name], []
    handle = layer.register_forward_hook(
        lambda module, inputs, output: caught.append(
            output.detach().reshape(len(first["input_ids"]), -1, output.shape[-1])
        )
    )
    with torch.no_grad():
        model(**first), model(**second)
    handle.remove()
    sums, count = [0.0] * layer.weight.shape[0], 0
    for i in range(len(first["input_ids"])):
        for t in range(first["input_ids"].shape[1]):
            if not (first["attention_mask"][i, t] and second["attention_mask"][i, t]):
                continue
            count += 1
            for u in range(len(sums)):
                sums[u] += abs(float(caught[1][i, t, u]) - float(caught[0][i, t, u]))
    return [s / count for s in sums]


@pytest.mark.parametrize(
    "name, layer",
    [
        ("bert", "bert.encoder.layer.1.intermediate.dense"),
        ("distilbert", "distilbert.transformer.layer.0.ffn.lin1"),
        ("opt", "model.decoder.layers.1.fc1"),
    ],
)
def test_changes_are_the_formula(name, layer):
    model, (first, second) = ARCHITECTURES[name](), two(name)
    block = next(part for part in layer.split(".") if part.isdigit())
    found = track(model, [first, second]).changes(model)[int(block), "neurons"]
    assert torch.allclose(found, torch.tensor(oracle(model, layer, first, second)), rtol=1e-4)


def test_heads_are_the_mean_over_their_dimensions():
    model, caught = ARCHITECTURES["bert"](), []
    passes = [batch("bert", n=2, length=5, seed=seed) for seed in (0, 1)]
    handle = model.bert.encoder.layer[0].attention.self.register_forward_hook(
        lambda module, inputs, output: caught.append(output[0].detach())
    )
    with torch.no_grad():
        for data in passes:
            model(**data)
    handle.remove()
    expected = (caught[1] - caught[0]).abs().reshape(2, 5, 4, 8).mean((0, 1, 3))
    assert torch.allclose(track(model, passes).changes(model)[0, "heads"], expected, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_is_the_tracker_with_single_examples(name):
    model, data = ARCHITECTURES[name](), batch(name, n=6, padded=True)
    singles = [{key: value[i : i + 1] for key, value in data.items()} for i in range(6)]
    for activation, method in (("pre", "activation-change"), ("post", "activation-change-post")):
        changes = track(model, singles, activation).changes(model)
        kept = prune(
            copy.deepcopy(model), calibration=[data], method=method, pattern="heads+neurons", sparsity=0.5
        ).masks.units(model)
        for key, keep in kept.items():
            assert torch.equal(keep, generate_pruning_mask(changes[key], quantile=0.5)), (activation, key)


@pytest.mark.parametrize("field", ["change", "output_change"])
@pytest.mark.parametrize("name", NAMES)
def test_batches_and_padding_do_not_matter(name, field):
    model, data = ARCHITECTURES[name](), batch(name, n=5, length=8, padded=True)
    linears = anatomy(model).linears
    wide = {
        key: nn.functional.pad(
            value,
            (0, 3),
            value=-100 if key == "labels" else 1 if key == "input_ids" and name in ("roberta", "opt") else 0,
        )
        if value.dim() == 2
        else value
        for key, value in data.items()
    }
    expected = calibrate(model, [data], linears, (field,))
    for batches in (
        [{k: v[i : i + 1] for k, v in data.items()} for i in range(5)],
        [{k: v[:2] for k, v in data.items()}, {k: v[2:] for k, v in wide.items()}],
        [wide],
    ):
        found = calibrate(model, batches, linears, (field,))
        for layer in linears:
            assert torch.allclose(
                getattr(found[layer], field), getattr(expected[layer], field), rtol=1e-3, atol=1e-6
            ), layer


def test_one_example_has_no_change():
    model = ARCHITECTURES["bert"]()
    with pytest.raises(UsageError, match="needs two"):
        prune(model, calibration=[batch("bert", n=1)], method="activation-change", pattern="neurons", sparsity=0.5)


# Defects.


def test_the_previous_activations_are_recorded():
    model, passes = ARCHITECTURES["bert"](), two("bert")

    class Forgetful(
        NeuronTracker
    ):  # the defect: the previous pass is never stored, every change is zero, every unit "stays"
        def record(self, activations, attention_mask=None):
            super().record(activations, attention_mask)
            self.previous = {}
            self.sums = {key: torch.zeros(x.shape[-1] + 1) for key, x in activations.items()}

    forgetful = Forgetful()
    with LayerTracker(model) as layers, torch.no_grad():
        for data in passes:
            model(**data)
            forgetful.record(layers.activations, data["attention_mask"])
    rules = dict(attention_thresholds=0.7, intermediate_thresholds=0.7)
    size = parameter_counts(model)["total"]
    assert (
        parameter_counts(apply_pruning_to_model(rules, copy.deepcopy(model), forgetful))["total"] == size
    )  # nothing pruned
    tracker = track(model, passes)
    with LayerTracker(model) as layers, torch.no_grad():
        model(**passes[0])
        for key, x in layers.activations.items():
            assert torch.allclose(tracker.previous[key][0], x, atol=1e-6)
    assert parameter_counts(apply_pruning_to_model(rules, model, tracker))["total"] < size
    with pytest.raises(UsageError, match="two forward passes"):
        track(model, passes[:1]).changes(model)


@pytest.mark.parametrize("name", NAMES)
def test_the_surviving_columns_are_kept(name):
    model, data = ARCHITECTURES[name](), batch(name, padded=True)
    tracker = track(model, two(name))
    units = unit_masks_by_rule(model, tracker.changes(model), RULES)
    masked = copy.deepcopy(model)
    Masks.from_units(masked, units).apply(masked)
    smaller = apply_pruning_to_model(RULES, copy.deepcopy(model), tracker)
    first_n = copy.deepcopy(smaller)  # the defect: right shape, wrong columns
    for group, old in zip(anatomy(first_n).groups, anatomy(model).groups, strict=True):
        consumer = group.linears[group.consumer]
        consumer.weight.data = old.linears[old.consumer].weight.data[:, : consumer.weight.shape[1]].clone()
    with torch.no_grad():
        expected, ours, wrong = (m.double()(**data).logits for m in (masked, smaller, first_n))
    assert (ours - expected).abs().max() < 1e-10 and (wrong - expected).abs().max() > 1e-3
    with torch.no_grad():
        assert (smaller.float()(**data).logits - masked.float()(**data).logits).abs().max() < 1e-5


def test_update_output_dense_layer():
    model, names = ARCHITECTURES["bert"](), "bert.encoder.layer.0.output.dense"
    keep = torch.arange(64) % 3 == 0
    before = model.get_submodule(names).weight.detach().clone()
    layer = update_output_dense_layer(model, names, keep)
    assert torch.equal(layer.weight, before[:, ::3]) and layer.in_features == 22 and layer.weight.requires_grad
    for wrong in (22, torch.ones(5, dtype=torch.bool), torch.ones(22), None):
        with pytest.raises(UsageError, match="which"):
            update_output_dense_layer(model, names, wrong)
    with pytest.raises(UsageError, match="did you mean"):
        update_output_dense_layer(model, names + "e", keep)


def test_precision_is_a_mean_over_classes():
    random = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 3, generator=random), torch.randint(3, (50,), generator=random)
    found = compute_metrics(logits, labels)
    predicted = logits.argmax(1)
    by_hand = (
        sum(((predicted == c) & (labels == c)).sum().item() / max(1, (predicted == c).sum().item()) for c in range(3))
        / 3
    )
    assert found["precision"] == pytest.approx(by_hand)
    micro = precision_score(labels, predicted, average="micro")  # the defect
    assert micro == pytest.approx(found["accuracy"]) and abs(micro - found["precision"]) > 1e-3


def test_padding_is_excluded():
    model = ARCHITECTURES["bert"]()
    passes = [batch("bert", n=3, length=6, seed=seed) for seed in (0, 1)]
    padded = [
        {key: nn.functional.pad(value, (0, 6)) if value.dim() == 2 else value for key, value in data.items()}
        for data in passes
    ]
    plain, wide = track(model, passes).changes(model), track(model, padded).changes(model)
    for key in plain:
        assert torch.allclose(plain[key], wide[key], rtol=1e-4)
    mixed = NeuronTracker()  # the defect: every position counts
    with LayerTracker(model) as layers, torch.no_grad():
        for data in padded:
            model(**data)
            mixed.record(layers.activations)
    assert any(not torch.allclose(plain[key], value, rtol=1e-2) for key, value in mixed.changes(model).items())


def test_hooks_are_gone_while_timing():
    model, data = ARCHITECTURES["bert"](), batch("bert")
    left = LayerTracker(model)  # the defect: the unpruned model is timed with its hooks
    with pytest.raises(RunError, match="hooks"):
        latency(model, data, 0.01)
    left.remove()
    track(model, two("bert"))
    assert latency(model, data, 0.01)["median"] > 0
    try:
        with LayerTracker(model):
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not any(module._forward_hooks for module in model.modules())


def test_memory_is_that_of_inference():
    "The same before and after training, and smaller for a smaller model; what training needs is another number."
    task = load_task("sentiment")
    model = load_model("tiny-bert", task)
    data = task.batches("test", model.tokenizer, batch_size=32)[0]
    before, logger = inference_bytes(model, data), ResourceLogger()
    with measured("cpu") as training:
        recover(model, task, epochs=0.05, callbacks=[logger])
    assert training.peak_total_bytes > 10 * before  # the defect: what the process holds when training ends
    assert inference_bytes(model, data) == before and set(logger.summary) == {
        "seconds",
        "examples_per_second",
        "peak_bytes",
    }
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tokens = data["input_ids"].numel()
    assert (
        weights + 4 * tokens * 256 < before < weights + 4 * tokens * 256 * 20
    )  # one FFN's activations are alive at the least
    units = {(g.block, g.kind): torch.arange(g.count) < g.count // 4 for g in anatomy(model).groups}
    assert inference_bytes(remove(model, Masks.from_units(model, units)), data) < 0.8 * before


# Masks, settings, fine-tuning.


def test_thresholds():
    change = torch.tensor([1.0, 2.0, 4.0, 4.0])
    assert generate_pruning_mask(change, 0).all() and generate_pruning_mask(change, 0.5).tolist() == [
        False,
        True,
        True,
        True,
    ]
    assert generate_pruning_mask(change, 1).tolist() == [False, False, True, True]
    assert torch.equal(generate_pruning_mask(change, 0.5), generate_pruning_mask(1000 * change, 0.5))  # normalised
    assert not torch.equal(
        generate_pruning_mask(change, 3, normalize=False), generate_pruning_mask(1000 * change, 3, normalize=False)
    )
    assert generate_pruning_mask(torch.zeros(3), 0.5).all()  # all alike
    assert generate_pruning_mask(change, size=1).sum() == 1 and generate_pruning_mask(change, quantile=0.99).sum() == 1
    permutation = torch.tensor([2, 0, 3, 1])
    assert torch.equal(generate_pruning_mask(change[permutation], 0.6), generate_pruning_mask(change, 0.6)[permutation])


def test_bert_small_arithmetic():
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(
            BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048)
        )
    units = {
        (block, kind): torch.arange(count) < kept
        for kind, count, sizes in (("heads", 8, (8, 8, 6, 1)), ("neurons", 2048, (2048, 2048, 193, 83)))
        for block, kept in enumerate(sizes)
    }
    assert parameter_counts_of(model) == 28_764_674
    model = model.to_empty(device="cpu")
    assert parameter_counts_of(remove(model, Masks.from_units(model, units), inplace=True)) == 23_667_798


def parameter_counts_of(model):
    return sum(p.numel() for p in model.parameters())


def test_folding_the_mean_of_a_constant_neuron_changes_nothing():
    model, passes = ARCHITECTURES["bert"](), two("bert")
    for block in anatomy(model).blocks:
        block.linears["fc1"].weight.data[:5] = 0
        block.linears["fc1"].bias.data[:5] = 2.0  # constant, and loud
    with torch.no_grad():
        expected = model(**passes[0]).logits
    rules = dict(intermediate_sizes=64 - 5)
    tracker = track(model, passes)
    folded, plain = (apply_pruning_to_model(rules, copy.deepcopy(model), tracker, fold=fold) for fold in (passes, None))
    with torch.no_grad():
        differences = [(m(**passes[0]).logits - expected).abs().max() for m in (folded, plain)]
    assert differences[0] < 1e-4 < 1e-2 < differences[1]


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(attention_treshold=0.5), "did you mean 'attention_thresholds'"),
        (dict(attention_thresholds=[0.5]), "2 blocks"),
        (dict(), "no rule"),
        (dict(attention_thresholds=0.5, attention_sizes=2), "give one of them"),
        (dict(intermediate_thresholds=30), "threshold"),
        (dict(attention_sizes=9), "between 1 and 4"),
    ],
)
def test_settings_that_make_no_sense(wrong, says):
    model = ARCHITECTURES["bert"]()
    with pytest.raises(UsageError, match=says):
        apply_pruning_to_model(wrong, model, track(model, two("bert")))
    assert parameter_counts(model)["total"] == parameter_counts(ARCHITECTURES["bert"]())["total"]


def test_optimizers_from_settings():
    model = ARCHITECTURES["bert"]()
    adamw = create_optimizer(model, {"optimizer": {"type": "adamw", "lr": 1e-3, "weight_decay": 0.1}})
    assert type(adamw) is torch.optim.AdamW and [(g["lr"], g["weight_decay"]) for g in adamw.param_groups] == [
        (1e-3, 0.1),
        (1e-3, 0.0),
    ]
    assert sum(len(g["params"]) for g in adamw.param_groups) == len(list(model.parameters())) and all(
        p.dim() == 1 for p in adamw.param_groups[1]["params"]
    )
    sgd = create_optimizer(model, {"learning_rate": 0.2, "optimizer": {"type": "SGD", "momentum": 0.9}})
    assert type(sgd) is torch.optim.SGD and sgd.defaults["momentum"] == 0.9 and sgd.param_groups[0]["lr"] == 0.2


def test_seed():
    set_seed(5)
    first = torch.rand(3)
    set_seed(5)
    assert torch.equal(first, torch.rand(3))


@pytest.mark.slow
def test_the_recipe_from_two_files(tmp_path):
    (tmp_path / "model.json").write_text(
        json.dumps(
            {
                "model_path": "tiny-bert",
                "hidden_size": 128,
                "attention_sizes": 2,
                "intermediate_quantiles": [0, 0, 0.5, 0.5],
                "fold": True,
                "passes": 3,
            }
        )
    )
    (tmp_path / "run.json").write_text(
        json.dumps(
            {
                "task": "sentiment",
                "epochs": 1,
                "batch_size": 32,
                "train_examples": 320,
                "optimizer": {"type": "AdamW", "lr": 1e-3},
                "seeds": [0, 1],
            }
        )
    )
    called = []

    class Counter(ResourceLogger):
        def on_step_end(self, args, state, control, **kwargs):
            called.append(state.global_step)

    rows = fine_tune_and_evaluate(tmp_path / "model.json", tmp_path / "run.json", callbacks=[Counter()])
    assert [(row["seed"], row["model"]) for row in rows] == [
        (0, "unpruned"),
        (0, "pruned"),
        (1, "unpruned"),
        (1, "pruned"),
    ] and len(called) == 4 * 10
    for row in rows:
        assert 0 <= row["precision"] <= 1 and row["latency_s"] > 0 and row["training_examples_per_second"] > 0
        assert row["parameters"] == {"unpruned": 691_586, "pruned": rows[1]["parameters"]}[row["model"]]
    heads = 4 * 2 * (3 * (32 * 128 + 32) + 128 * 32)
    neurons = 2 * 128 * (128 + 1 + 128)
    assert rows[1]["parameters"] == 691_586 - heads - neurons
    again = fine_tune_and_evaluate(
        tmp_path / "model.json", json.loads((tmp_path / "run.json").read_text()) | {"seeds": [1]}
    )
    assert [row["accuracy"] for row in again] == [row["accuracy"] for row in rows[2:]]


def test_the_model_file_must_fit(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="hidden_size 512"):
        fine_tune_and_evaluate({"hidden_size": 512, "attention_sizes": 1}, {"train_examples": 32})
    with pytest.raises(UsageError, match="classification"):
        fine_tune_and_evaluate({"attention_sizes": 1}, {"task": "pydocs"})

    def never(*_, **__):
        raise AssertionError("trained before the request was checked")

    monkeypatch.setattr("pruneresearch.recipes.activation_change.recover", never)
    for wrong, says in (
        (dict(attention_thresholds=[0.5]), "4 blocks"),
        (dict(), "no rule"),
        (dict(attention_sizes=9), "between 1 and 4"),
        (dict(attention_sizes=1, passes=1), "two passes"),
        (dict(attention_sizes=1, activation="mid"), "known are"),
    ):
        with pytest.raises(UsageError, match=says):
            fine_tune_and_evaluate(wrong, {})
    (tmp_path / "broken.json").write_text('{"a": ')
    with pytest.raises(RunError, match="line 1"):
        fine_tune_and_evaluate(tmp_path / "broken.json", {})


def test_measure_model_is_the_models_own_evaluation():
    from pruneresearch.measure.quality import evaluate_model

    task = load_task("sentiment")
    model = load_model("tiny-bert", task)
    found, known = measure_model(model, task), evaluate_model(model, task)
    assert (
        found["accuracy"] == known["accuracy"]
        and found["f1"] == known["macro_f1"]
        and found["precision"] == known["macro_precision"]
    )


def test_flat_settings_of_an_optimizer_count():
    model = torch.nn.Linear(2, 1)
    sgd = create_optimizer(model, {"type": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0})
    assert isinstance(sgd, torch.optim.SGD) and {group["lr"] for group in sgd.param_groups} == {0.1}
    assert {group["momentum"] for group in sgd.param_groups} == {0.9}
    adam = create_optimizer(model, {"task": "sentiment", "epochs": 1, "lr": 0.2})
    assert isinstance(adam, torch.optim.AdamW) and adam.param_groups[0]["lr"] == 0.2
    for wrong, words in (
        ({"tpye": "SGD"}, "did you mean 'type'"),
        ({"learningrate": 1}, "did you mean 'learning_rate'"),
        ({"type": "SGD", "optimizer": {"lr": 1.0}}, "give one of them"),
        ({"learning_rate": 1.0, "optimizer": {"lr": 1.0}}, "give one of them"),
    ):
        with pytest.raises(UsageError, match=words):
            create_optimizer(model, wrong)
