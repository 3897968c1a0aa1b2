"Hebbian scoring: each defect of circulating code is built here, fails the check, and is absent from ours."

import copy
from dataclasses import replace

import pytest
import torch
from architectures import ARCHITECTURES, batch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune as torch_prune
from transformers import TrainerCallback

from pruneresearch.basics.errors import UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.measure.cost import parameter_counts
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.methods.hebbian import importance_masks
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.loading import load_model
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.collectors import GRADIENT_GROUP
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.statistics import calibrate
from pruneresearch.training.recovery import recover

NAMES = list(ARCHITECTURES)


def grouped(model, data, linears, size=8):
    "Σ over groups of |∂(mean loss)/∂W|, example after example through its own backward pass."
    total = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
    n = len(data["input_ids"])
    for start in range(0, n, size):
        examples = range(start, min(n, start + size))
        opened = {name: torch.zeros_like(linear.weight) for name, linear in linears.items()}
        for i in examples:
            real = data["attention_mask"][i].bool()
            logits, label = model(input_ids=data["input_ids"][i : i + 1, real]).logits, data["labels"][i]
            loss = (
                F.cross_entropy(logits[0, :-1], label[real][1:]) if label.dim() else F.cross_entropy(logits[0], label)
            )
            gradients = torch.autograd.grad(loss, [linear.weight for linear in linears.values()])
            for name, gradient in zip(linears, gradients, strict=True):
                opened[name] += gradient / len(examples)
        for name in total:
            total[name] += opened[name].abs()
    return total


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_sum_over_groups_of_eight(name):
    "Twenty examples: two full groups and one of four, whatever the batches."
    model, data = ARCHITECTURES[name](), batch(name, n=20, length=6, padded=True)
    linears = dict(list(anatomy(model).linears.items())[-3:])
    expected = grouped(model, data, linears)
    assert GRADIENT_GROUP == 8
    for size in (20, 8, 3):
        parts = [{key: value[i : i + size] for key, value in data.items()} for i in range(0, 20, size)]
        seen = calibrate(model, parts, linears, needs=("grouped_gradient",))
        for layer in linears:
            error = (seen[layer].grouped_gradient - expected[layer]).norm() / expected[layer].norm()
            assert error < 1e-4, f"{layer}, batches of {size}: {error:.1e}"


@pytest.fixture
def digits():
    task = load_task("digits")
    model = load_model("mlp", task)
    linears = anatomy(model).linears
    seen = calibrate(model, list(task.calibration(n=128)), linears, needs=("grouped_gradient",))
    return task, model, linears, {f"{name}.weight": s.grouped_gradient for name, s in seen.items()}


def follows(masks, scores, fraction):
    "In every layer, round(fraction · n) weights are gone, and none of them scores above one that stays."
    return all(
        int((~keep).sum()) == round(fraction * keep.numel()) and scores[name][~keep].max() <= scores[name][keep].min()
        for name, keep in masks.keep.items()
    )


def test_scores_are_truly_used(digits):
    task, model, linears, scores = digits
    size = {name: p.detach().abs() for name, p in model.named_parameters() if name in scores}
    forgotten = copy.deepcopy(model)
    for linear in anatomy(forgotten).linears.values():
        torch_prune.l1_unstructured(linear, "weight", amount=0.4)  # the defect: scores computed, not passed
    defect = type(
        "M",
        (),
        {"keep": {f"{n}.weight": linear.weight_mask.bool() for n, linear in anatomy(forgotten).linears.items()}},
    )
    assert follows(defect, size, 0.4) and not follows(defect, scores, 0.4)
    ours = importance_masks(linears, scores, 0.4)
    assert follows(ours, scores, 0.4) and not follows(ours, size, 0.4)
    assert all(isinstance(linear.weight, nn.Parameter) and not linear._forward_pre_hooks for linear in linears.values())
    ours.verify(model)


def test_the_engine_prunes_by_the_same_scores(digits):
    task, model, linears, scores = digits
    engine = prune(copy.deepcopy(model), task, method="hebbian", sparsity=0.375, n_calibration=128).masks
    assert all(
        torch.equal(engine.keep[name], keep) for name, keep in importance_masks(linears, scores, 0.375).keep.items()
    )


def test_sparsity_after_distillation_is_the_sparsity_before(digits):
    task, model, linears, scores = digits
    teacher = copy.deepcopy(model)
    masks = importance_masks(linears, scores, 0.4)
    before = parameter_counts(model)
    grown = copy.deepcopy(model)
    recover(grown, task, teacher=teacher, epochs=0.2)  # the defect: masks removed before distillation
    assert parameter_counts(grown)["sparsity"] < 0.5 * before["sparsity"]
    recover(model, task, masks=masks, teacher=teacher, epochs=0.2)
    after = parameter_counts(model)
    assert after["sparsity"] == before["sparsity"] == pytest.approx(0.4, abs=1e-4)


def test_dense_bytes_stay_and_sparse_bytes_shrink(digits):
    task, model, linears, scores = digits
    dense = parameter_counts(model)
    importance_masks(linears, scores, 0.4)
    pruned = parameter_counts(model)
    assert pruned["bytes_dense"] == dense["bytes_dense"] == dense["bytes_sparse"]
    weights = sum(linear.weight.numel() for linear in linears.values())
    gone = sum(round(0.4 * linear.weight.numel()) for linear in linears.values())
    assert pruned["bytes_sparse"] == dense["bytes_dense"] - 4 * gone + sum(
        -(-linear.weight.numel() // 8) for linear in linears.values()
    )
    assert pruned["nonzero"] == dense["nonzero"] - gone and weights > gone


class Rates(TrainerCallback):
    "Learning rates, step by step."

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, optimizer=None, lr_scheduler=None, **kwargs):
        self.seen.append(lr_scheduler.get_last_lr()[0])


def test_the_warm_up_is_shorter_than_the_run(digits):
    "However short the run: the peak is reached after a tenth of it, and the last step is small."
    task, model, linears, scores = digits
    for epochs in (0.3, 2):
        ours, defect = Rates(), Rates()
        steps = recover(copy.deepcopy(model), task, epochs=epochs, learning_rate=1e-3, callbacks=[ours])["steps"]
        recover(
            copy.deepcopy(model), task, epochs=epochs, learning_rate=1e-3, callbacks=[defect], warmup_steps=500
        )  # the defect
        assert len(ours.seen) == steps < 500
        assert (
            max(ours.seen) == pytest.approx(1e-3, rel=0.2)
            and ours.seen.index(max(ours.seen)) <= max(1, 0.15 * steps)
            and ours.seen[-1] < 0.3e-3
        )
        assert max(defect.seen) < 0.5e-3 and defect.seen == sorted(defect.seen)  # never warm


def test_nothing_is_chosen_on_the_reported_split(digits):
    "Scoring, pruning and distilling work without a reported split; a recipe that picks its best epoch on it does not."
    task, model, linears, scores = digits

    class Blind(dict):
        def __getitem__(self, name):
            if name == "test":
                raise AssertionError("the reported split was read")
            return super().__getitem__(name)

    blind = replace(task, splits=Blind(task.splits), _memo={})
    teacher = copy.deepcopy(model)
    result = prune(
        model,
        blind,
        method="hebbian",
        sparsity=0.4,
        schedule="cubic",
        rounds=2,
        n_calibration=64,
        between=lambda model, masks: recover(model, blind, masks=masks, teacher=teacher, epochs=0.1),
    )
    recover(model, blind, masks=result.masks, teacher=teacher, epochs=0.1)
    with pytest.raises(AssertionError, match="reported split"):
        max(evaluate_model(model, blind)["accuracy"] for _ in range(3))  # the defect: best epoch by the reported split

    def rows(split):
        return {tuple(map(float, vector)) for vector in task.splits[split]["vector"]}

    assert not rows("selection") & rows("test") and not rows("train") & rows("test")


def test_bert_base_arithmetic():
    "40 % of the linear layers in blocks are at most 31.2 % of BERT-base."
    from transformers import BertConfig, BertForSequenceClassification

    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig())
    inside, every = (
        sum(linear.weight.numel() for linear in anatomy(model).linears.values()),
        sum(p.numel() for p in model.parameters()),
    )
    assert round(every / 1e6, 1) == 109.5 and round(
        (inside + sum(linear.bias.numel() for linear in anatomy(model).linears.values())) / 1e6, 1
    ) in (85.0, 85.1, 85.5)
    assert 0.4 * inside / every < 0.312


def test_wrong_requests():
    line = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="fraction"):
        importance_masks({"line": line}, {}, 40)
    with pytest.raises(UsageError, match="no scores for line"):
        importance_masks({"line": line}, {}, 0.4)
    assert isinstance(line.weight, nn.Parameter)
    with pytest.raises(UsageError, match="labels"):
        prune(SimpleMLP(4, [4], 2), calibration=[{"inputs": torch.rand(4, 4)}], method="hebbian", sparsity=0.5)
