"Training with held masks: resumption, distillation against its formula, NaN, accumulation."

import math
import signal
import subprocess
import sys

import pytest
import torch

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.training.distillation import distillation_loss, recovery_loss
from pruneresearch.training.recovery import last_whole_checkpoint, recover


@pytest.fixture(scope="module")
def digits():
    return load_task("digits")


def pruned_mlp(digits, sparsity=0.8):
    model = load_model("mlp", digits)
    return model, prune(model, method="magnitude", sparsity=sparsity).masks


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_distillation_loss_against_its_formula():
    torch.manual_seed(0)
    student, teacher, T = torch.randn(5, 3).double(), torch.randn(5, 3).double(), 3.0
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p = [math.exp(v / T) / sum(math.exp(u / T) for u in t) for v in t]
        q = [math.exp(v / T) / sum(math.exp(u / T) for u in s) for v in s]
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert distillation_loss(student, teacher, T).item() == pytest.approx(T**2 * expected / 5, rel=1e-5)


def test_recovery_loss_mixes_labels_and_teacher(digits):
    model, _ = pruned_mlp(digits)
    teacher = load_model("mlp", digits)
    batch = digits.batches("train", batch_size=16, limit=16)[0]
    hard = torch.nn.functional.cross_entropy(model(batch["inputs"]), batch["labels"])
    soft = distillation_loss(model(batch["inputs"]), teacher(batch["inputs"]), 2.0)
    assert torch.allclose(recovery_loss(model, batch, teacher, alpha=0.3), 0.3 * hard + 0.7 * soft)
    assert torch.allclose(recovery_loss(model, batch), hard)


def test_distillation_of_a_language_model_ignores_padding():
    model, teacher = load_model("tiny-llama"), load_model("tiny-llama")
    prune(model, method="magnitude", sparsity=0.5)
    ids = torch.randint(5, 500, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids)

    def pad(x, value):
        return torch.nn.functional.pad(x, (0, 4), value=value)

    padded = dict(input_ids=pad(ids, 0), attention_mask=pad(torch.ones_like(ids), 0), labels=pad(ids, -100))
    with torch.no_grad():
        a, b = (recovery_loss(model, x, teacher) for x in (plain, padded))
    assert torch.allclose(a, b, atol=1e-5)


def test_masks_hold_and_the_rest_learns(digits):
    model, masks = pruned_mlp(digits)
    before = state(model)
    recover(model, digits, masks=masks, epochs=1, learning_rate=1e-3)
    masks.verify(model)
    for name, keep in masks.keep.items():
        after = model.state_dict()[name]
        assert not after[~keep].any() and (after[keep] != before[name][keep]).float().mean() > 0.9


def test_the_same_seed_gives_the_same_weights_and_another_others(digits):
    runs = []
    for seed in (0, 0, 1):
        model, masks = pruned_mlp(digits)
        recover(model, digits, masks=masks, epochs=1, seed=seed)
        runs.append(state(model))
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not all(torch.equal(runs[0][k], runs[2][k]) for k in runs[0])


def test_accumulated_batches_equal_one_large_batch(digits):
    "Two steps of 8 accumulated are one step of 16."
    results = []
    for options in (dict(batch_size=16), dict(batch_size=8, gradient_accumulation_steps=2)):
        model, masks = pruned_mlp(digits)
        recover(
            model,
            digits,
            masks=masks,
            learning_rate=0.1,
            max_steps=1,
            optim="sgd",
            warmup_steps=0,
            max_grad_norm=0,
            weight_decay=0,
            **options,
        )
        results.append(state(model))
    assert all(torch.allclose(results[0][k], results[1][k], atol=1e-6) for k in results[0])


def test_nan_ends_the_run_with_a_sentence(digits):
    model, masks = pruned_mlp(digits)
    with pytest.raises(RunError, match="lower the learning rate"):
        recover(model, digits, masks=masks, epochs=5, learning_rate=1e30, max_grad_norm=0)


LIGHT = """
import sys
import pruneresearch.training.gates, pruneresearch.training.recovery
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.shipping.checkpoints import load_pruned, save_pruned
from pruneresearch.shipping.surgery import remove
mlp = load_model("mlp")
prune(mlp, method="magnitude", sparsity=0.5)
save_pruned(mlp, sys.argv[1] + "/mlp", certificate=False)
load_pruned(sys.argv[1] + "/mlp")
bert = load_model("tiny-bert")
smaller = remove(bert, prune(bert, method="magnitude", pattern="neurons", sparsity=[0.5, 0.25, 0.5, 0.5]).masks)
save_pruned(smaller, sys.argv[1] + "/bert", certificate=False)
load_pruned(sys.argv[1] + "/bert")
heavy = ("transformers.trainer", "transformers.pipelines", "evaluate", "datasets", "pandas", "sklearn", "matplotlib")
print(*(name for name in heavy if name in sys.modules))
"""


def test_the_trainer_is_imported_when_something_trains(tmp_path):
    "Pruning, removal and opening a checkpoint, as the process of a certificate does, import no Trainer and no metrics."
    done = subprocess.run([sys.executable, "-c", LIGHT, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


KILLED = """
import os, signal, sys, transformers
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.training.recovery import recover
from pruneresearch.training.trainer import RecoveryTrainer
from pruneresearch.data.tasks import load_task
digits = load_task("digits")
model = load_model("mlp", digits)
masks = prune(model, method="magnitude", sparsity=0.8).masks
loss = RecoveryTrainer.compute_loss
def dying(self, *a, **k):
    if self.state.global_step == 30: os.kill(os.getpid(), signal.SIGKILL)
    return loss(self, *a, **k)
RecoveryTrainer.compute_loss = dying
recover(model, digits, masks=masks, epochs=1, output=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(digits, tmp_path):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "run")], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert last_whole_checkpoint(tmp_path / "run")
    model, masks = pruned_mlp(digits)
    recover(model, digits, masks=masks, epochs=1, output=tmp_path / "run")
    other, masks = pruned_mlp(digits)
    recover(other, digits, masks=masks, epochs=1)
    assert all(torch.equal(model.state_dict()[k], other.state_dict()[k]) for k in model.state_dict())


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    for step, content in ((10, '{"global_step": 10}'), (20, '{"global_'), (30, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if content:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(content)
    assert last_whole_checkpoint(tmp_path).endswith("checkpoint-10")
    assert last_whole_checkpoint(tmp_path / "nothing") is None


def test_after_mixed_precision_the_model_computes_in_its_own(tmp_path):
    "The trainer's half-precision forward must not stay: a model read back from its file says exactly the same."
    from pruneresearch.model.loading import save_model

    task = load_task("sentiment")
    model = load_model("tiny-bert", task)
    recover(model, task, epochs=0.02, bf16=True)
    batch = task.batches("test", model.tokenizer, batch_size=32)[0]
    save_model(model, tmp_path / "model")
    with torch.no_grad():
        ours, read = model(**batch).logits, load_model(tmp_path / "model", task)(**batch).logits
    assert torch.equal(ours, read) and "forward" not in model.__dict__
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        half = model(**batch).logits.float()
    assert not torch.equal(half, read)  # the defect would show


def test_a_users_own_forward_comes_back(digits):
    model, masks = pruned_mlp(digits)
    original = model.forward

    def own(inputs):
        return original(inputs) * 2

    model.forward = own
    recover(model, digits, masks=masks, epochs=0.05, bf16=True)
    assert model.forward is own


def test_optimizers(digits):
    def after(**options):
        model, masks = pruned_mlp(digits)
        recover(model, digits, masks=masks, epochs=0.1, **options)
        masks.verify(model)
        return model.layers[0].weight.detach()

    adamw, sgd, still = (
        after(learning_rate=1e-2),
        after(learning_rate=1e-2, optimizer="sgd"),
        after(learning_rate=1e-12, optimizer="sgd"),
    )
    assert not torch.equal(adamw, sgd) and torch.allclose(still, pruned_mlp(digits)[0].layers[0].weight, atol=1e-6)
    model, masks = pruned_mlp(digits)
    own = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, weight_decay=0.01)
    recover(model, digits, masks=masks, epochs=0.1, optimizer=own)
    assert (
        own.state
        and torch.allclose(model.layers[0].weight, sgd, atol=1e-3)
        and not torch.equal(model.layers[0].weight, pruned_mlp(digits)[0].layers[0].weight)
    )
    for wrong in (dict(optimizer="adam"), dict(temperature=0), dict(temperature=-1)):
        with pytest.raises(UsageError):
            recover(model, digits, **wrong)
