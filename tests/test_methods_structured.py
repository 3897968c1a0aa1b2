"""Scores of units, repair, and whole blocks: against loops written from the formulas, and against the models that are
left."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from test_methods_one_shot import heard_tokens
from torch import nn

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.methods.structured import activation_norm, block_influence, rounded_shares, weight_range
from pruneresearch.model.anatomy import anatomy
from pruneresearch.pruning.blocks import is_residual
from pruneresearch.pruning.engine import prune
from pruneresearch.pruning.masks import Masks
from pruneresearch.pruning.repair import least_squares
from pruneresearch.pruning.statistics import calibrate
from pruneresearch.shipping.checkpoints import load_pruned, save_pruned
from pruneresearch.shipping.surgery import remove, widths_of

ENCODERS = ("bert", "roberta", "distilbert")


def logits(model, data, **how):
    with torch.no_grad():
        return model(input_ids=data["input_ids"], attention_mask=data["attention_mask"], **how).logits


# --- scores of units -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_range_of_weights(name):
    for group in anatomy(ARCHITECTURES[name]()).groups:
        expected = []
        for unit in range(group.count):
            total = 0.0
            for producer, rows in group.producers.items():
                for row in group.linears[producer].weight.tolist()[unit * rows : (unit + 1) * rows]:
                    total += max(row) + abs(min(row))
            expected.append(total)
        assert weight_range(group).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_what_a_unit_sends_on(name):
    model, data = ARCHITECTURES[name](), batch(name, n=6, padded=True)
    statistics = calibrate(model, [data], anatomy(model).linears, {"norm"})
    norm = {name: layer.norm for name, layer in statistics.items()}
    for group in anatomy(model).groups:
        consumer = group.linears[group.consumer]
        if name in DECODERS:
            tokens = np.concatenate(heard_tokens(model, consumer, data))
        else:
            heard = []
            handle = consumer.register_forward_pre_hook(
                lambda module, inputs, heard=heard: heard.append(inputs[0].detach()[0].double().numpy())
            )
            for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
                model(input_ids=ids[None, mask.bool()])
            handle.remove()
            tokens = np.concatenate(heard)
        weight, expected = consumer.weight.detach().double().numpy(), []
        for unit in range(
            group.count
        ):  # the energy of what each of a unit's columns adds to the output, token by token
            columns = range(unit * group.columns, (unit + 1) * group.columns)
            expected.append(sum((np.outer(tokens[:, j], weight[:, j]) ** 2).sum() for j in columns) ** 0.5)
        assert activation_norm(group, norm).tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["weight-range", "activation-norm"])
@pytest.mark.parametrize("name", DECODERS)
def test_the_same_width_everywhere_reloads_plainly_and_is_the_masked_model(name, method, tmp_path):
    model, data = ARCHITECTURES[name](), batch(name, n=4, padded=True)
    result = prune(model, calibration=[data], method=method, pattern="neurons", sparsity=0.25)
    smaller = remove(model, result.masks)
    assert (
        widths_of(anatomy(smaller))[0]["neurons"] == 48
        and len({w["neurons"] for w in widths_of(anatomy(smaller))}) == 1
    )
    real = data["attention_mask"].bool()
    torch.testing.assert_close(logits(smaller, data)[real], logits(model, data)[real], rtol=1e-4, atol=1e-4)
    smaller.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(again, data)[real], logits(smaller, data)[real], rtol=1e-5, atol=1e-5)


# --- multiples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sparsity, multiple, widths",
    [
        (0.3, 16, [48] * 3),
        (0.5, 16, [32] * 3),
        (0.9, 32, [32] * 3),
        ([0.1, 0.5, 0.8], 8, [64, 32, 16]),
        (0.3, 1, [45] * 3),
    ],
)
def test_rounded_widths(sparsity, multiple, widths):
    model = ARCHITECTURES["llama"]()
    result = prune(
        model, method="weight-range", pattern="neurons", sparsity=rounded_shares(model, sparsity, "neurons", multiple)
    )
    assert [w["neurons"] for w in widths_of(anatomy(remove(model, result.masks)))] == widths


@pytest.mark.parametrize(
    "pattern, multiple, message",
    [
        ("heads", 8, "takes none"),
        ("unstructured", 8, "takes none"),
        ("neurons", 0, "from 1"),
        ("neurons", 2.5, "from 1"),
    ],
)
def test_rounding_that_makes_no_sense(pattern, multiple, message):
    with pytest.raises(UsageError, match=message):
        rounded_shares(ARCHITECTURES["llama"](), 0.5, pattern, multiple)


@pytest.mark.parametrize(
    "settings",
    [
        dict(pattern="heads+neurons", sparsity=0.25),
        dict(pattern="heads", sparsity=[0.1, 0.2, 0.3]),
        dict(pattern="heads", sparsity=0.15, allocation="global"),
    ],
)
def test_a_share_that_takes_nothing_is_refused(settings):
    "Two key/value groups in each of three blocks: a quarter of two is none."
    model = ARCHITECTURES["llama"]()
    with pytest.raises(UsageError, match="none of the heads, 2 in a block"):
        prune(model, **settings)
    with pytest.raises(UsageError, match="no neuron would go"):
        rounded_shares(model, 0.1, "neurons", 64)
    assert prune(model, pattern="heads+neurons", sparsity={"heads": 0, "neurons": 0.25}).achieved > 0


# --- repair --------------------------------------------------------------------------------------------------------


def test_repair_is_the_least_squares_solution():
    random = torch.Generator().manual_seed(0)
    a, weight = (
        torch.randn(400, 24, generator=random, dtype=torch.float64)
        @ torch.randn(24, 24, generator=random, dtype=torch.float64),
        torch.randn(5, 24, generator=random, dtype=torch.float64),
    )
    keep = torch.arange(24) % 3 > 0
    damping = 0.01 * (a[:, keep] ** 2).sum(0).mean()
    rows, target = (
        torch.cat([a[:, keep], damping.sqrt() * torch.eye(16, dtype=torch.float64)]),
        torch.cat([a @ weight.T, damping.sqrt() * weight[:, keep].T]),
    )
    expected = torch.linalg.lstsq(rows, target).solution.T  # damping holds on to the weights as they were
    found = least_squares(weight, (a.T @ a).float(), keep)
    torch.testing.assert_close(found[:, keep].double(), expected, rtol=1e-3, atol=1e-3)
    assert not found[:, ~keep].any()


@pytest.mark.parametrize("way", [None, False], ids=["block by block", "at once"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_repair_brings_the_first_block_nearer_to_what_it_was(name, way):
    data, dense = batch(name, n=16, length=24), ARCHITECTURES[name]()

    def outputs(model):
        heard, block = [], anatomy(model).blocks[0].module
        handle = block.register_forward_hook(
            lambda module, inputs, output: heard.append(output[0] if isinstance(output, tuple) else output)
        )
        logits(model, data)
        handle.remove()
        return heard[0]

    far = []
    for repair in (False, True):
        model = ARCHITECTURES[name]()
        result = prune(
            model,
            calibration=[data],
            method="activation-norm",
            pattern="neurons",
            sparsity=0.5,
            repair=repair,
            sequential=way,
        )
        result.masks.verify(model)
        far.append((outputs(model) - outputs(dense)).norm().item())
    assert far[1] < 0.95 * far[0]


def test_inputs_that_are_all_dead_cannot_be_repaired():
    with pytest.raises(RunError, match="prune without repair"):
        least_squares(torch.ones(2, 3), torch.zeros(3, 3), torch.tensor([True, True, False]))


@pytest.mark.parametrize(
    "ask, message",
    [
        (dict(method="wanda"), "Choose pattern heads"),
        (dict(method="wanda", pattern="2:4", sparsity=None), "Choose pattern heads"),
        (dict(method="wanda", pattern="neurons", schedule="linear", rounds=2), "one round"),
        (dict(method="magnitude", pattern="blocks"), "Choose pattern heads"),
    ],
)
def test_repair_that_makes_no_sense(ask, message):
    with pytest.raises(UsageError, match=message):
        prune(ARCHITECTURES["llama"](), calibration=[batch("llama")], repair=True, **({"sparsity": 0.4} | ask))


def test_repair_walks_whatever_scored_the_units():
    data = [batch("llama", n=16, length=24)]
    walked, once = (
        prune(
            ARCHITECTURES["llama"](),
            calibration=data,
            method="weight-range",
            pattern="neurons",
            sparsity=0.5,
            repair=True,
            sequential=way,
        )
        for way in (None, False)
    )
    assert walked.sequential and not once.sequential


def test_an_empty_calibration_set_is_called_so():
    with pytest.raises(UsageError, match="the calibration set is empty"):
        prune(ARCHITECTURES["llama"](), calibration=[], method="block-influence", pattern="blocks", sparsity=0.4)


def test_repair_needs_data_whatever_the_method():
    with pytest.raises(UsageError, match="needs data for this request"):
        prune(ARCHITECTURES["llama"](), method="magnitude", pattern="neurons", sparsity=0.5, repair=True)


# --- whole blocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_influence(name):
    model, data = ARCHITECTURES[name](), batch(name, n=5, padded=True)
    structure, expected = anatomy(model), np.zeros(len(anatomy(model).blocks))
    with torch.no_grad():
        for ids, mask in zip(data["input_ids"], data["attention_mask"], strict=True):
            states = model(input_ids=ids[None, mask.bool()], output_hidden_states=True).hidden_states
            for i in range(len(expected) - 1):  # the last state of decoders has passed the final norm
                for a, b in zip(states[i][0].double().numpy(), states[i + 1][0].double().numpy(), strict=True):
                    expected[i] += 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    expected /= int(data["attention_mask"].sum())
    assert block_influence(model, structure, [data])[:-1].tolist() == pytest.approx(expected[:-1].tolist(), abs=1e-5)
    singles = [{key: value[i : i + 1] for key, value in data.items()} for i in range(5)]
    assert block_influence(model, structure, singles).tolist() == pytest.approx(
        block_influence(model, structure, [data]).tolist(), abs=1e-5
    )


@pytest.mark.parametrize("gone", [0, -1])
@pytest.mark.parametrize("name", DECODERS)
def test_a_model_without_a_block_is_the_masked_model_and_reloads(name, gone, tmp_path):
    changes = (
        dict(num_hidden_layers=3)
        if name != "gpt_neo"
        else dict(num_layers=4, attention_types=[[["global", "local"], 2]])
    )
    model, data = ARCHITECTURES[name](**changes), batch(name, n=4, padded=True)
    kept = torch.ones(len(anatomy(model).blocks), dtype=torch.bool)
    kept[gone] = False
    masks = Masks.from_blocks(model, kept)
    smaller = remove(model, masks)
    masks.apply(model)
    masks.verify(model)
    real = data["attention_mask"].bool()
    torch.testing.assert_close(logits(smaller, data)[real], logits(model, data)[real], rtol=1e-5, atol=1e-5)
    assert len(anatomy(smaller).blocks) == len(kept) - 1 and smaller.config.num_hidden_layers == len(kept) - 1
    with_cache, without = (
        smaller.generate(data["input_ids"][:1, :4], max_new_tokens=6, do_sample=False, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)  # blocks look for their keys under their new numbers
    smaller.save_pretrained(tmp_path / "out")
    again = type(model).from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(again, data)[real], logits(smaller, data)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neo"])
def test_a_model_without_a_block_has_a_certificate(name, tmp_path):
    model, data = ARCHITECTURES[name](), batch(name)
    smaller = remove(model, Masks.from_blocks(model, torch.arange(len(anatomy(model).blocks)) > 0))
    smaller.tokenizer = None
    assert save_pruned(smaller, tmp_path / "out")["loader"] == "from_pretrained"
    torch.testing.assert_close(logits(load_pruned(tmp_path / "out"), data), logits(smaller, data), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["block-influence", "magnitude", "random", "wanda", "fisher"])
def test_the_share_of_blocks_is_exact(method):
    model = ARCHITECTURES["llama"](num_hidden_layers=4)
    result = prune(model, calibration=[batch("llama")], method=method, pattern="blocks", sparsity=0.5)
    assert int(result.masks.blocks(model).sum()) == 2 and result.achieved == 0.5 and result.pattern == "blocks"
    result.masks.verify(model)


def test_the_block_that_does_nothing_goes_first():
    model = ARCHITECTURES["llama"](num_hidden_layers=4)
    with torch.no_grad():
        for role in ("o", "down"):
            anatomy(model).blocks[2].linears[role].weight.mul_(1e-3)
    result = prune(model, calibration=[batch("llama")], method="block-influence", pattern="blocks", sparsity=0.25)
    assert result.masks.blocks(model).tolist() == [True, True, False, True]


def test_blocks_and_units_together():
    model, data = ARCHITECTURES["llama"](), batch("llama")
    keep = (
        Masks.from_blocks(model, torch.tensor([True, False, True])).keep
        | Masks.from_units(model, {(2, "neurons"): torch.arange(64) % 2 > 0}).keep
    )
    masks = Masks(keep)
    smaller = remove(model, masks)
    masks.apply(model)
    torch.testing.assert_close(logits(smaller, data), logits(model, data), rtol=1e-4, atol=1e-5)
    assert [w["neurons"] for w in widths_of(anatomy(smaller))] == [64, 32]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_who_hands_on(name):
    assert is_residual(ARCHITECTURES[name]()) == (name in DECODERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_that_normalise_what_they_added_cannot_go(name):
    with pytest.raises(UsageError, match="none can be left out"):
        prune(ARCHITECTURES[name](), method="magnitude", pattern="blocks", sparsity=0.5)
    with pytest.raises(UsageError, match="none can be left out"):
        remove(ARCHITECTURES[name](), Masks.from_blocks(ARCHITECTURES[name](), torch.tensor([True, False])))


def test_opt_that_normalises_after_the_addition():
    assert not is_residual(ARCHITECTURES["opt"](do_layer_norm_before=False))


@pytest.mark.parametrize(
    "ask, message",
    [
        (dict(method="block-influence", pattern="neurons"), "Choose pattern blocks"),
        (dict(method="weight-range", pattern="blocks"), "chooses whole heads and neurons"),
        (dict(method="sparsegpt", pattern="blocks"), "chooses single weights"),
        (dict(method="magnitude", pattern="blocks", sparsity=1.0), "sparsity must be a fraction"),
        (dict(method="magnitude", pattern="blocks", sparsity=[0.5, 0.5, 0.1]), "allocation|fraction"),
        (dict(method="magnitude", pattern="blocks", allocation="layer"), "does not go with pattern"),
        (dict(method="wanda", pattern="blocks", sequential=True), "compares all blocks"),
    ],
)
def test_requests_that_make_no_sense(ask, message):
    with pytest.raises(UsageError, match=message):
        prune(ARCHITECTURES["llama"](), calibration=[batch("llama")], **({"sparsity": 0.4} | ask))


def test_a_plain_module_has_no_blocks():
    with pytest.raises(UsageError, match="needs transformer blocks"):
        prune(nn.Sequential(nn.Linear(4, 4)), method="magnitude", pattern="blocks", sparsity=0.5)
