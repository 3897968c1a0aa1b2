"A wrapped model is the model inside; weights that are no numbers are refused before any work."

import types

import pytest
import torch
from architectures import ARCHITECTURES, batch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune
from transformers import Olmo2Config, Olmo2ForCausalLM

from pruneresearch import (
    UsageError,
    anatomy,
    calibrate,
    evaluate_model,
    load_pruned,
    prune,
    recover,
    register_layout,
    remove,
    save_pruned,
)
from pruneresearch.measure.text import continuations, writing_speed
from pruneresearch.model.families import LAYOUTS
from pruneresearch.recipes.train_masks import train_masks
from pruneresearch.shipping.surgery import reload_plan


class Own(nn.Module):
    "A module of the user's own around a decoder, with an untied head."

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Linear(99, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.body(input_ids=input_ids, attention_mask=attention_mask).logits[:, -1])


SHELLS = {
    "compiled": torch.compile,
    "replicated": nn.DataParallel,
    "both": lambda model: nn.DataParallel(torch.compile(model)),
}


def unchanged_after(model, call, match):
    "Check a refusal: one sentence, every tensor as it was."
    before = {name: value.clone() for name, value in model.state_dict().items() if isinstance(value, torch.Tensor)}
    with pytest.raises(UsageError, match=match) as caught:
        call()
    assert str(caught.value).count(". ") <= 1, caught.value
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


# ---- shells


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("how", [dict(method="magnitude"), dict(method="wanda"), dict(method="taylor")])
def test_a_shell_changes_no_mask(shell, how):
    inside = ARCHITECTURES["llama"]()
    wrapped = SHELLS[shell](inside)
    expected = prune(ARCHITECTURES["llama"](), calibration=[batch("llama")], sparsity=0.5, **how)
    result = prune(wrapped, calibration=[batch("llama")], sparsity=0.5, **how)
    assert list(result.masks.keep) == list(expected.masks.keep) and result.achieved == expected.achieved
    assert all(torch.equal(result.masks.keep[name], mask) for name, mask in expected.masks.keep.items())
    result.masks.verify(wrapped)
    result.masks.verify(inside)


@pytest.mark.parametrize("shell", SHELLS)
def test_units_are_removed_saved_and_loaded_from_inside_a_shell(shell, tmp_path):
    model = ARCHITECTURES["llama"]()
    model.tokenizer = None
    wrapped = SHELLS[shell](model)
    masks = prune(wrapped, method="magnitude", pattern="heads+neurons", sparsity=0.5).masks
    assert masks.units(wrapped).keys() == masks.units(model).keys()
    smaller = remove(wrapped, masks)
    assert type(smaller) is type(model) and anatomy(smaller).blocks[0].neurons.count == 32
    save_pruned(SHELLS[shell](smaller), tmp_path / "out", certificate=False)
    again, data = load_pruned(tmp_path / "out"), batch("llama")
    with torch.no_grad():
        assert torch.equal(again(data["input_ids"]).logits, smaller(data["input_ids"]).logits)


@pytest.mark.parametrize("shell", SHELLS)
def test_statistics_and_anatomies_are_those_of_the_model_inside(shell):
    model, data = ARCHITECTURES["llama"](), [batch("llama", padded=True)]
    wrapped = SHELLS[shell](model)
    assert list(anatomy(wrapped).linears) == list(anatomy(model).linears)
    seen = (calibrate(m, data, anatomy(m).linears, ["norm", "squared_gradient"]) for m in (model, wrapped))
    for (name, a), b in zip(next(seen).items(), next(seen).values(), strict=True):
        assert torch.equal(a.norm, b.norm) and torch.equal(a.squared_gradient, b.squared_gradient), name


def test_a_shell_is_evaluated_and_trained(tiny_bert_copy, sentiment):
    masks = prune(tiny_bert_copy, method="magnitude", sparsity=0.5).masks
    expected = evaluate_model(tiny_bert_copy, sentiment, split="selection")
    wrapped = nn.DataParallel(tiny_bert_copy)
    assert evaluate_model(wrapped, sentiment, split="selection") == expected
    recover(wrapped, sentiment, masks=masks, max_steps=2)
    masks.verify(tiny_bert_copy)


@pytest.fixture
def tiny_bert_copy(sentiment):
    from pruneresearch import load_model

    return load_model("tiny-bert", sentiment, device="cpu")


@pytest.mark.parametrize("shell", ["replicated", "compiled"])
def test_other_rooms_take_a_shell_off_too(shell, tiny_llama):
    wrapped = SHELLS[shell](tiny_llama)
    assert reload_plan(wrapped) == reload_plan(tiny_llama)
    assert continuations(wrapped, ["Return the"], 3) == continuations(tiny_llama, ["Return the"], 3)
    assert set(writing_speed(wrapped, prompt=4, new_tokens=2, rounds=1)) == {"prefill", "decode"}


def test_masks_are_trained_in_a_replicated_model(tiny_bert_copy, sentiment):
    trained = train_masks(nn.DataParallel(tiny_bert_copy), sentiment, max_steps=1)
    assert type(trained.model) is type(tiny_bert_copy)
    assert {block for block, kind in trained.keep if kind == "heads"} == set(range(len(anatomy(tiny_bert_copy).blocks)))


# ---- a model inside a larger module


@pytest.mark.parametrize("how", [dict(method="wanda"), dict(method="magnitude"), dict(method="gradient")])
def test_the_blocks_inside_a_module_of_ones_own_are_in_scope_and_nothing_else(how):
    model, bare = Own(ARCHITECTURES["llama"]()), ARCHITECTURES["llama"]()
    head, data = model.head.weight.clone(), batch("llama")
    labelled = {**data, "labels": torch.tensor([0, 1, 2, 0])}
    result = prune(model, calibration=[labelled], sparsity=0.5, **how)
    names = [f"body.{name}.weight" for name in anatomy(bare).linears]
    assert list(result.masks.keep) == names and torch.equal(model.head.weight, head)
    assert result.achieved == pytest.approx(0.5, abs=1e-3)
    if how["method"] != "gradient":  # whose loss is that of the head
        expected = prune(bare, calibration=[data], sparsity=0.5, **how).masks.keep
        assert all(torch.equal(expected[name.removeprefix("body.")], result.masks.keep[name]) for name in names)


def test_units_are_removed_from_a_module_of_ones_own():
    model, data = Own(ARCHITECTURES["llama"]()).eval(), batch("llama")
    inputs = {name: data[name] for name in ("input_ids", "attention_mask")}
    masks = prune(model, method="magnitude", pattern="heads+neurons", sparsity=0.5).masks
    with torch.no_grad():
        expected = model(**inputs)
        smaller = remove(model, masks)
        torch.testing.assert_close(smaller(**inputs), expected)
    assert smaller.body.config.intermediate_size == 32 and smaller.body.config.num_key_value_heads == 1


def test_all_linears_of_a_module_of_ones_own_when_asked():
    assert "head" in anatomy(Own(ARCHITECTURES["llama"]()), "all-linear").linears


def test_two_models_in_one_module_are_refused():
    pair = nn.ModuleDict({"left": ARCHITECTURES["llama"](), "right": ARCHITECTURES["bert"]()})
    unchanged_after(pair, lambda: prune(pair, method="magnitude", sparsity=0.5), "left, right")


def test_an_adapter_is_refused():
    class Adapter(nn.Module):
        __module__ = "peft.tuners.lora"

    model = ARCHITECTURES["llama"]()
    model.model.layers[0].mlp.adapter = Adapter()
    for call in (
        lambda: prune(model, method="magnitude", sparsity=0.5),
        lambda: calibrate(model, [batch("llama")], {}),
        lambda: save_pruned(model, "never"),
    ):
        unchanged_after(model, call, "merge_and_unload")


# ---- weights that are no numbers


def coded(dtype):
    def make(linear):
        values = linear.weight.detach().mul(100).to(dtype)
        linear.weight = nn.Parameter(values, requires_grad=False)
        return linear

    return make


def packed(linear):
    "As GPTQ and AWQ keep them."
    layer = nn.Module()
    layer.qweight = torch.zeros(4, 4, dtype=torch.int32)
    return layer


class Scaled(torch.Tensor):
    "A tensor of codes that calls itself float, as torchao's."


def subclassed(linear):
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Scaled), requires_grad=False)
    return linear


def dynamic(linear):
    holder = nn.Sequential(linear)
    return torch.ao.quantization.quantize_dynamic(holder, {nn.Linear})[0]


QUANTISED = {
    "int8": coded(torch.int8),
    "uint8": coded(torch.uint8),
    "float8": coded(torch.float8_e4m3fn),
    "packed": packed,
    "subclass": subclassed,
    "dynamic": dynamic,
}
ASK = {
    "magnitude": dict(method="magnitude", sparsity=0.5),
    "wanda": dict(method="wanda", sparsity=0.5),
    "sparsegpt": dict(method="sparsegpt", sparsity=0.5),
    "2:4": dict(method="wanda", pattern="2:4"),
    "heads": dict(method="magnitude", pattern="heads", sparsity=0.5),
    "everything": dict(method="magnitude", scope="all-linear", sparsity=0.5),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", QUANTISED)
@pytest.mark.parametrize("asked", ASK)
def test_quantised_weights_are_refused_before_any_work(kind, asked):
    model = ARCHITECTURES["llama"]()
    block = model.model.layers[2]  # the last: the blocks before it are whole
    block.mlp.down_proj = QUANTISED[kind](block.mlp.down_proj)
    unchanged_after(model, lambda: prune(model, calibration=[batch("llama")], **ASK[asked]), "dequantise")


def test_quantised_weights_outside_the_blocks_matter_only_in_their_scope():
    model = ARCHITECTURES["llama"]()
    model.lm_head = coded(torch.int8)(model.lm_head)
    unchanged_after(model, lambda: prune(model, method="magnitude", scope="all-linear", sparsity=0.5), "lm_head")
    assert prune(model, method="magnitude", sparsity=0.5).achieved == pytest.approx(0.5, abs=1e-3)


# ---- leftovers and shared weights, known before the walk


def masked_by_torch(linear):
    torch_prune.l1_unstructured(linear, "weight", 0.3)


def parametrised(linear):
    class Double(nn.Module):
        def forward(self, weight):
            return 2 * weight

    parametrize.register_parametrization(linear, "weight", Double())


@pytest.mark.parametrize("leave", [masked_by_torch, parametrised])
@pytest.mark.parametrize("asked", ASK)
def test_a_leftover_in_a_late_block_leaves_the_early_ones_alone(leave, asked):
    model = ARCHITECTURES["llama"]()
    leave(model.model.layers[2].mlp.up_proj)
    unchanged_after(
        model,
        lambda: prune(model, calibration=[batch("llama")], **ASK[asked]),
        "torch.nn.utils.(prune|parametrize).remove",
    )


def test_a_block_that_is_listed_twice_is_refused():
    model = ARCHITECTURES["llama"]()
    model.model.layers[1] = model.model.layers[0]
    unchanged_after(model, lambda: prune(model, method="magnitude", sparsity=0.5), "shares its weights")


def test_weights_that_two_layers_share_are_refused():
    model = ARCHITECTURES["llama"]()
    model.model.layers[1].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    unchanged_after(model, lambda: prune(model, method="magnitude", sparsity=0.5), "share their weights")


def test_a_linear_layer_alone_is_refused():
    layer = nn.Linear(4, 4)
    unchanged_after(layer, lambda: prune(layer, method="magnitude", sparsity=0.5), "nn.Sequential")


# ---- what `remove` cannot cut


@pytest.fixture
def olmo():
    register_layout("olmo2", LAYOUTS["llama"])
    sizes = dict(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
    yield Olmo2ForCausalLM(Olmo2Config(**sizes, pad_token_id=0, eos_token_id=1)).eval()
    del LAYOUTS["olmo2"]


@pytest.mark.parametrize("inplace", [False, True])
def test_a_norm_over_all_heads_is_refused_by_remove(olmo, inplace):
    masks = prune(olmo, method="magnitude", pattern="heads", sparsity=0.5).masks
    unchanged_after(olmo, lambda: remove(olmo, masks, inplace=inplace), "q_norm")
    olmo(torch.ones(1, 4, dtype=torch.long))


def test_its_neurons_can_go(olmo):
    masks = prune(olmo, method="magnitude", pattern="neurons", sparsity=0.5).masks
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(remove(olmo, masks)(ids).logits, olmo(ids).logits)


def test_shells_of_no_module_are_refused():
    with pytest.raises(UsageError, match="torch module"):
        prune(types.SimpleNamespace(), method="magnitude", sparsity=0.5)


# ---- blocks that run more than once


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_block_that_runs_twice_is_not_calibrated_on_its_first_run_only(method):
    model = ARCHITECTURES["llama"](num_hidden_layers=1)
    layers = model.model.layers
    data = [batch("llama")]
    once = calibrate(model, data, anatomy(model).linears, ["norm"])
    original = model.model.forward

    def forward(*args, **kwargs):
        hook = layers[0].register_forward_hook(lambda module, inputs, output: hook.remove() or module(output, **kept))
        kept = {}
        before = layers[0].register_forward_pre_hook(lambda m, a, k: kept.update(k), with_kwargs=True)
        try:
            return original(*args, **kwargs)
        finally:
            before.remove()

    model.model.forward = forward
    unchanged_after(model, lambda: prune(model, calibration=data, method=method, sparsity=0.5), "sequential=False")
    twice = calibrate(model, data, anatomy(model).linears, ["norm"])
    assert all((twice[name].norm > once[name].norm).any() for name in once)
    prune(model, calibration=data, method=method, sparsity=0.5, sequential=False)
