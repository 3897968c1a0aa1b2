"Gates: where they act, what they cost, what training does to them, and the defects that circulate."

import copy
import math
import signal
import subprocess
import sys

import pytest
import torch
from architectures import ARCHITECTURES
from architectures import batch as make_batch

from pruneresearch.basics.errors import UsageError
from pruneresearch.basics.files import read_json
from pruneresearch.data.tasks import first_examples, load_task
from pruneresearch.measure.cost import macs
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.methods.gumbel import GUMBEL, gumbel_sigmoid
from pruneresearch.methods.hard_concrete import chance_alive, hard_concrete_gate
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.calls import forward, tensor_outputs
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.budget import UNIT_KINDS, cost_terms, kept_share, one_sequence, shares_of
from pruneresearch.pruning.masks import Masks
from pruneresearch.recipes.train_masks import FILES, LEARN, save_masks, train_masks
from pruneresearch.shipping import checkpoints
from pruneresearch.shipping.surgery import remove, without_gates
from pruneresearch.training.gates import (
    Distribution,
    Gates,
    GateTraining,
    attached,
    decided,
    logistic_noise,
    make_regularizer,
    meet_budget,
    regularization_loss,
    sites,
    train_gates,
)

AS_IS = Distribution(
    lambda logits, noise, T: logits, lambda logits, T: logits, lambda logits, T: logits
)  # a gate is its logit


@pytest.fixture(scope="module")
def task():
    return first_examples(load_task("sentiment"), 320)  # 10 steps an epoch


@pytest.fixture
def reloaded_here(monkeypatch):
    "A certificate compares with what is reloaded in this process: fresh ones are started by the tests of checkpoints."

    def outputs(folder, found, batch, device):
        with torch.inference_mode():
            return tensor_outputs(checkpoints.load_pruned(folder, device=device), batch)

    monkeypatch.setattr(checkpoints, "_fresh_outputs", outputs)


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def random_gates(model, kinds, seed=0):
    gates = Gates(model, kinds, AS_IS)
    with torch.no_grad():
        gates.logits.copy_(torch.randn(len(gates.logits), generator=torch.Generator().manual_seed(seed)))
    return gates


def logits_of(model, data):
    with torch.no_grad():
        return forward(model, data).logits


# Where gates act.


def by_hand(model, keep):
    "A copy with weights set to zero: columns of the reader for heads and neurons, rows and bias for outputs."
    model = copy.deepcopy(model)
    for block in anatomy(model).blocks:
        for kind in UNIT_KINDS:
            if (block.index, kind) not in keep:
                continue
            gone, group = ~keep[block.index, kind], block.heads if kind == "heads" else block.neurons
            reader = group.linears[group.consumer]
            with torch.no_grad():
                if kind == "outputs":
                    reader.weight[gone] = 0
                    if reader.bias is not None:
                        reader.bias[gone] = 0
                else:
                    reader.weight[:, gone.repeat_interleave(reader.weight.shape[1] // len(gone))] = 0
    return model


@pytest.mark.parametrize("kinds", [("heads",), ("neurons",), ("outputs",), UNIT_KINDS])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_binary_gates_are_zero_weights_and_survive_removal(name, kinds):
    model, data = ARCHITECTURES[name](), make_batch(name, padded=True)
    gates, plain = random_gates(model, kinds), logits_of(model, data)
    expected = logits_of(by_hand(model, gates.keep()), data)
    with attached(gates, model):
        gated = logits_of(model, data)
    assert torch.allclose(gated, expected, atol=1e-5) and not torch.allclose(gated, plain, atol=1e-3)
    assert torch.equal(logits_of(model, data), plain)  # no hook is left
    smaller, rows = without_gates(model, gates.keep())
    assert torch.allclose(logits_of(smaller, data), expected, atol=1e-5)
    rows.verify(smaller)
    if "outputs" not in kinds:
        assert sum(p.numel() for p in smaller.parameters()) < sum(
            p.numel() for p in by_hand(ARCHITECTURES[name](), {}).parameters()
        )


@pytest.mark.parametrize("name", ["bert", "distilbert", "llama"])
def test_ffn_int_gates_neurons_not_what_they_are_computed_from(name):
    "The defect: a mask of as many entries on the FFN's input silences features, not neurons."
    model, data = ARCHITECTURES[name](), make_batch(name)
    block, gates = anatomy(model).blocks[0], random_gates(model, ("neurons",))
    assert {site.linear for site in sites(model, ("neurons",))} == {
        b.neurons.linears[b.neurons.consumer] for b in anatomy(model).blocks
    }
    producer = block.neurons.linears[next(iter(block.neurons.producers))]
    keep = gates.keep()[0, "neurons"]
    handle = producer.register_forward_pre_hook(lambda module, inputs: inputs[0] * keep[: inputs[0].shape[-1]])
    defective = logits_of(model, data)
    handle.remove()
    with attached(gates, model):
        assert not torch.allclose(logits_of(model, data), defective, atol=1e-3)


def test_kinds_that_are_not_learned_are_exactly_one(task):
    "The defect: noise on masks that are not learned. Gates of 1 on heads leave the training-mode FFN untouched."
    model = ARCHITECTURES["bert"](hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    data, gates = make_batch("bert"), Gates(model, ("heads",), AS_IS, init=1.0)
    plain = logits_of(model, data)
    with attached(gates, model):
        assert torch.equal(logits_of(model, data), plain)
    noisy = Gates(
        model,
        ("neurons",),
        Distribution(lambda logits, noise, T: torch.sigmoid(noise), AS_IS.settled, AS_IS.chance),
        init=1.0,
    )
    with attached(noisy, model):
        assert not torch.allclose(logits_of(model, data), plain, atol=1e-3)  # what the defect does
    trained = train_masks(load_model("tiny-bert", task), task, "head", target_sparsity=0.5, num_epochs=0.2)
    assert all(keep.all() for (_, kind), keep in trained.keep.items() if kind != "heads")
    assert len({kind for _, kind in trained.keep}) == 3


def test_training_draws_anew_and_evaluation_decides():
    model, data = ARCHITECTURES["bert"](hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), make_batch("bert")
    gates = Gates(model, UNIT_KINDS, GUMBEL)
    with attached(gates, model):
        model.train()
        assert not torch.equal(logits_of(model, data), logits_of(model, data))
        model.eval()
        assert torch.equal(logits_of(model, data), logits_of(model, data))


def test_a_block_never_loses_all():
    assert decided(torch.tensor([-3.0, -1.0, -2.0])).tolist() == [False, True, False]
    assert decided(torch.tensor([-3.0, 0.0, 2.0])).tolist() == [False, True, True]


# Distributions.


def test_a_logit_of_zero_keeps_half():
    "The defect: one Gumbel variable instead of the difference of two keeps 1 − 1/e."
    torch.manual_seed(0)
    n = 400_000

    def share(noise, T):
        return (gumbel_sigmoid(torch.zeros(n), noise, T) > 0.5).float().mean().item()

    tolerance = 4 * 0.5 / math.sqrt(n)
    for T in (5.0, 1.0, 0.1):
        assert abs(share(logistic_noise(torch.zeros(n)), T) - 0.5) < tolerance
    assert abs(share(-(-torch.rand(n).log()).log(), 1.0) - (1 - 1 / math.e)) < tolerance


def test_logistic_noise_is_the_difference_of_two_gumbels():
    from scipy.stats import kstest

    torch.manual_seed(0)
    noise = logistic_noise(torch.zeros(20_000)).double().numpy()
    assert kstest(noise, "logistic").pvalue > 0.001
    assert torch.isfinite(logistic_noise(torch.zeros(1_000_000))).all()


def test_hard_concrete_against_its_formula():
    for logit, u in ((-2.0, 0.3), (0.0, 0.5), (1.5, 0.9), (3.0, 0.99), (-4.0, 0.01)):
        s = 1 / (1 + math.exp(-(math.log(u) - math.log(1 - u) + logit) / (2 / 3)))
        expected = min(1.0, max(0.0, s * 1.2 - 0.1))
        noise = torch.tensor([math.log(u) - math.log(1 - u)])
        assert hard_concrete_gate(torch.tensor([logit]), noise).item() == pytest.approx(expected, abs=1e-6)
        assert chance_alive(torch.tensor(logit)).item() == pytest.approx(
            1 / (1 + math.exp(-(logit - 2 / 3 * math.log(0.1 / 1.1)))), rel=1e-5
        )


def test_straight_through_is_binary_and_learns():
    model = ARCHITECTURES["bert"]()
    gates = Gates(model, ("neurons",), GUMBEL, init=0.0, hard=True)
    z = gates.draw()
    assert set(z.detach().round(decimals=6).tolist()) == {0.0, 1.0}
    z.sum().backward()
    assert (gates.logits.grad > 0).all()


# Costs and budgets.


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_costs_are_what_counters_count(name):
    model, length = ARCHITECTURES[name](), 16
    keep = {
        site.key: torch.arange(site.count) < max(1, site.count // (2 + site.block))
        for site in sites(model, ("heads", "neurons"))
    }
    smaller = remove(model, Masks.from_units(model, keep))

    def counted(m):
        return macs(m, one_sequence(m, length))

    def weights(m):
        return sum(linear.weight.numel() for linear in anatomy(m).linears.values())

    assert float(kept_share(cost_terms(model, of="macs", length=length), shares_of(keep))) == pytest.approx(
        counted(smaller) / counted(model), abs=1e-6
    )
    assert float(kept_share(cost_terms(model, of="weights"), shares_of(keep))) == pytest.approx(
        weights(smaller) / weights(model), abs=1e-6
    )


def test_outputs_count_as_weights_and_not_as_macs():
    model = ARCHITECTURES["bert"]()
    half = {site.key: torch.arange(site.count) < site.count // 2 for site in sites(model, ("outputs",))}
    assert float(kept_share(cost_terms(model, of="macs"), shares_of(half))) == 1
    zeros = by_hand(model, half)
    last = [b.neurons.linears[b.neurons.consumer].weight for b in anatomy(zeros).blocks]
    assert float(kept_share(cost_terms(model, ("outputs",), "weights"), shares_of(half))) == pytest.approx(
        sum(int((w != 0).sum()) for w in last) / sum(w.numel() for w in last)
    )


@pytest.mark.parametrize(
    "request_, message",
    [
        (dict(target_sparsity=0.5, target_macs=0.5), "give one"),
        (dict(target_sparsity=50), "fraction"),
        (dict(target_macs=0.0), "fraction"),
        (dict(target_macs=0.01), "cannot be met"),
        (dict(anneal="cosine"), "annealing"),
        (dict(start=0.1, end=5.0), "temperature"),
        (dict(end=0.0), "temperature"),
    ],
)
def test_bad_requests_are_one_sentence(request_, message):
    with pytest.raises(UsageError, match=message) as error:
        make_regularizer(ARCHITECTURES["bert"](), ("heads", "neurons"), **request_)
    assert str(error.value).count("\n") == 0


def test_the_temperature_falls_and_then_holds():
    model = ARCHITECTURES["bert"]()
    for anneal in ("linear", "exponential"):
        regularizer = make_regularizer(model, ("heads",), 0.5, anneal=anneal)
        path = [regularizer.temperature(i / 100) for i in range(101)]
        assert (
            path[0] == 5.0
            and path[-1] == pytest.approx(0.1)
            and path == sorted(path, reverse=True)
            and path[85] == path[100]
        )
    assert make_regularizer(model, ("heads",), 0.5, anneal="constant").temperature(1.0) == 5.0


def test_settling_meets_the_budget_from_below_to_one_neuron():
    model = ARCHITECTURES["bert"]()
    for kinds, of in (
        (("neurons",), "target_sparsity"),
        (("heads", "neurons"), "target_macs"),
        (UNIT_KINDS, "target_sparsity"),
    ):
        for keep in (0.5, 0.77):
            gates, regularizer = (
                random_gates(model, kinds),
                make_regularizer(model, kinds, **{of: keep if of == "target_macs" else 1 - keep}),
            )
            before = gates.logits.detach().clone()
            changed = meet_budget(gates, regularizer)
            share = float(kept_share(regularizer.terms, shares_of(gates.keep())))
            one = max(
                1 - kept_share(regularizer.terms, {key: 1 - 1 / count})
                for key, count in gates.counts.items()
                if key[1] != "heads"
            )
            small_left = any(
                not kept.all() for key, kept in gates.keep().items() if key[1] != "heads"
            )  # once all are in, only a whole head is left to buy
            assert share <= keep + 1e-6 and (keep - one <= share or not small_left), (kinds, keep, share)
            if of == "target_sparsity" or keep == 0.5:
                assert small_left
            assert changed == int(((before >= 0) != (gates.logits >= 0)).sum())
            if len(kinds) == 1:
                assert before[gates.logits >= 0].min() >= before[gates.logits < 0].max() or changed > 0
            assert meet_budget(gates, regularizer) == 0


def test_the_multiplier_moves_against_the_error():
    model = ARCHITECTURES["bert"]()
    gates, regularizer = Gates(model, ("neurons",), GUMBEL, init=3.0), make_regularizer(model, ("neurons",), 0.5)
    for _ in range(3):
        loss = regularization_loss(regularizer, gates, 1.0)
    assert gates.multiplier > 0
    loss.backward()
    assert (gates.logits.grad > 0).all()  # descent lowers every logit
    assert regularization_loss(
        make_regularizer(model, ("neurons",), 0.5), Gates(model, ("neurons",), GUMBEL, init=-3.0), 1.0
    ).isfinite()


# Training.


def test_freezing_freezes_the_model_and_trains_the_gates(task):
    "The defect: freezing the masks instead."
    model = load_model("tiny-bert", task)
    before = state(model)
    gates, regularizer = Gates(model, LEARN["all"], GUMBEL), make_regularizer(model, LEARN["all"], 0.5)
    start = gates.logits.detach().clone()
    train_gates(model, task, gates, regularizer, epochs=0.5, freeze=True)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (
        (gates.logits != start).float().mean() > 0.9
        and all(p.requires_grad for p in model.parameters())
        and not hasattr(model, "gates")
    )
    train_gates(model, task, Gates(model, ("heads",), GUMBEL), make_regularizer(model, ("heads",), 0.5), epochs=0.2)
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_price_keeps_less_the_higher_it_is(task):
    kept = {}
    for price in (0.0, 100.0):
        model = load_model("tiny-bert", task)
        kept[price] = train_masks(
            model, task, "ffn_int", num_epochs=3, masks_LR=0.2, sparsity_loss=price, freeze=True, gumbel_temp_start=1.0
        ).report["kept"]
    assert kept[100.0] < 0.5 < kept[0.0]


def test_same_seed_same_masks(task):
    runs = [
        train_masks(
            load_model("tiny-bert", task), task, "head", target_sparsity=0.5, num_epochs=0.5, masks_LR=0.1, seed=seed
        )
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0].gates.logits, runs[1].gates.logits) and not torch.equal(
        runs[0].gates.logits, runs[2].gates.logits
    )


@pytest.mark.parametrize("learn", LEARN)
def test_exported_masks_reproduce_the_evaluation(learn, task, tmp_path, reloaded_here):
    "The three files and the weights saved with them give the reported metrics again, and so does the smaller model."
    train_masks(
        load_model("tiny-bert", task),
        task,
        learn,
        target_sparsity=0.4,
        num_epochs=1,
        masks_LR=0.2,
        output_dir=tmp_path / "out",
    )
    report = read_json(tmp_path / "out" / "metrics.json")
    assert report["gated"] == report["removed"] and abs(report["kept"] - 0.6) < 0.07
    model = load_model(str(tmp_path / "out" / "weights"), task)
    files = {kind: torch.load(tmp_path / "out" / name, weights_only=True) for kind, name in FILES.items()}
    assert all(mask.dtype == torch.bool for mask in files.values()) and set(LEARN[learn]) == {
        kind for kind, mask in files.items() if not mask.all()
    }
    keep = {(block, kind): mask for kind, masks in files.items() for block, mask in enumerate(masks)}
    assert evaluate_model(by_hand(model, keep), task)["accuracy"] == report["gated"]["accuracy"]
    assert (
        evaluate_model(checkpoints.load_pruned(tmp_path / "out" / "pruned"), task)["accuracy"]
        == report["removed"]["accuracy"]
    )
    assert not (tmp_path / "out" / "checkpoints").exists()


KILLED = """
import os, signal, sys
from pruneresearch.training.gates import GateTraining
from pruneresearch.recipes.train_masks import train_masks
from pruneresearch.model.loading import load_model
from pruneresearch.data.tasks import first_examples, load_task
task = first_examples(load_task("sentiment"), 320)
step = GateTraining.on_step_begin
def dying(self, args, state, control, **k):
    if state.global_step == 14: os.kill(os.getpid(), signal.SIGKILL)
    return step(self, args, state, control, **k)
GateTraining.on_step_begin = dying
model = load_model("tiny-bert", task)
train_masks(model, task, "all", target_sparsity=0.5, num_epochs=2, masks_LR=0.1, output_dir=sys.argv[1])
"""


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_masks(task, tmp_path, reloaded_here):
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "out")], capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-500:]
    assert not (tmp_path / "out" / "metrics.json").exists() and list((tmp_path / "out" / "checkpoints").iterdir())
    same = dict(learn_masks="all", target_sparsity=0.5, num_epochs=2, masks_LR=0.1)
    with pytest.raises(UsageError, match="another masks_LR"):
        train_masks(load_model("tiny-bert", task), task, **{**same, "masks_LR": 0.2}, output_dir=tmp_path / "out")
    resumed = train_masks(load_model("tiny-bert", task), task, **same, output_dir=tmp_path / "out")
    whole = train_masks(load_model("tiny-bert", task), task, **same)
    assert torch.equal(resumed.gates.logits, whole.gates.logits) and torch.equal(
        resumed.gates.history, whole.gates.history
    )
    assert all(torch.equal(resumed.model.state_dict()[name], value) for name, value in whole.model.state_dict().items())
    with pytest.raises(UsageError, match="finished run"):
        train_masks(load_model("tiny-bert", task), task, **same, output_dir=tmp_path / "out")


def test_a_crash_before_saving_loses_nothing(task, tmp_path, monkeypatch, reloaded_here):
    "The defect: everything is lost where the writing fails after training. Here the second call does not train again."
    same = dict(learn_masks="head", target_sparsity=0.5, num_epochs=1, masks_LR=0.1, output_dir=tmp_path / "out")

    def full(*_):
        raise OSError("disk full")

    monkeypatch.setattr(sys.modules[train_masks.__module__], "save_masks", full)
    with pytest.raises(OSError):
        train_masks(load_model("tiny-bert", task), task, **same)
    assert not any((tmp_path / "out" / name).exists() for name in FILES.values())
    monkeypatch.setattr(sys.modules[train_masks.__module__], "save_masks", save_masks)
    steps = []
    monkeypatch.setattr(GateTraining, "penalty", lambda self: steps.append(1) or torch.zeros(()))
    trained = train_masks(load_model("tiny-bert", task), task, **same)
    assert not steps and all((tmp_path / "out" / name).exists() for name in FILES.values())
    assert trained.report["steps"] == 10
