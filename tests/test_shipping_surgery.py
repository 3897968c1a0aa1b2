"Surgery: a cut model computes what the masked one computes, for every architecture, and reloads as it says."

import copy
import subprocess
import sys

import pytest
import torch
from architectures import ARCHITECTURES, DECODERS, batch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from pruneresearch.basics.errors import UsageError
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.families import layout_of
from pruneresearch.pruning.masks import Masks
from pruneresearch.shipping.surgery import reload_plan, remove, widths_after, widths_for, widths_of

NAMES = list(ARCHITECTURES)
PLAIN_HEADS = (
    "mistral",
    "qwen2",
)  # their configuration states the head size; Llama's asks for a number of heads that divides the hidden size


def kept(count, n, seed=0):
    "n of count units, at random."
    keep = torch.zeros(count, dtype=torch.bool)
    keep[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:n]] = True
    return keep


def cuts(model, kind):
    "Units for a cut: how many stay in block i."
    how = {
        "uniform neurons": lambda g: g.count // 2 if g.kind == "neurons" else g.count,
        "uniform": lambda g: g.count // 2,
        "uneven": lambda g: max(1, g.count - 1 - 3 * g.block) if g.kind == "neurons" else max(1, g.count - g.block),
        "one left": lambda g: 1,
        "all but one": lambda g: g.count - 1,
    }[kind]
    return {(g.block, g.kind): kept(g.count, how(g), seed=7 * g.block) for g in anatomy(model).groups}


def logits(model, data):
    with torch.inference_mode():
        return model(**{k: v for k, v in data.items() if k != "labels"}).logits


def real(name, output, data):
    "Outputs at real tokens; what a decoder says at padding means nothing."
    return output[data["attention_mask"].bool()] if name in DECODERS else output


@pytest.mark.parametrize("cut", ["uniform", "uneven", "one left", "all but one"])
@pytest.mark.parametrize("name", NAMES)
def test_removed_equals_masked(name, cut):
    model = ARCHITECTURES[name]()
    masks = Masks.from_units(model, cuts(model, cut))
    smaller, masked = remove(model, masks), copy.deepcopy(model)
    masks.apply(masked)
    for data in (batch(name), batch(name, padded=True, seed=2), batch(name, n=12, length=12)):
        expected, found = real(name, logits(masked, data), data), real(name, logits(smaller, data), data)
        assert not torch.equal(expected, real(name, logits(model, data), data)), "the cut must change something"
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert widths_of(anatomy(smaller)) == widths_after(model, masks)
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("cut", ["uniform", "uneven"])
@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_a_cache(name, cut):
    model = ARCHITECTURES[name]()
    masks = Masks.from_units(model, cuts(model, cut))
    smaller = remove(model, masks)
    masks.apply(model)
    data = batch(name, n=3, length=6)
    how = dict(
        input_ids=data["input_ids"],
        attention_mask=data["attention_mask"],
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    generated = [m.generate(**how, use_cache=cache) for m, cache in ((model, True), (smaller, True), (smaller, False))]
    assert generated[0].shape == (3, 18)
    assert torch.equal(generated[0], generated[1]) and torch.equal(generated[1], generated[2])


@pytest.mark.parametrize("name", NAMES)
def test_attributes_and_gradients_follow(name):
    model = ARCHITECTURES[name]()
    frozen = anatomy(model).blocks[0].linears["q"].weight.requires_grad_(False)
    smaller = remove(model, Masks.from_units(model, cuts(model, "uneven")))
    for module in smaller.modules():
        if isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
    head_dim = 8
    for block in anatomy(smaller).blocks:
        for path, size in layout_of(smaller).sizes.items():
            place, _, attribute = path.rpartition(".")
            q = block.linears["q"].weight.shape[0]
            assert (
                getattr(block.module.get_submodule(place), attribute)
                == {"heads": q // head_dim, "width": q, "neurons": block.neurons.count}[size]
            )
    data = batch(name)
    smaller.train()(**data).loss.backward()
    gradients = {n: p.grad for n, p in smaller.named_parameters() if p.requires_grad}
    assert not anatomy(smaller).blocks[0].linears["q"].weight.requires_grad and not frozen.requires_grad
    assert all(g is not None and g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("inplace", [True, False])
def test_the_original_stays_unless_asked(inplace):
    model = ARCHITECTURES["llama"]()
    before, shapes = copy.deepcopy(model.state_dict()), {n: p.shape for n, p in model.named_parameters()}
    smaller = remove(model, Masks.from_units(model, cuts(model, "uniform")), inplace=inplace)
    assert (smaller is model) == inplace
    if not inplace:
        assert {n: p.shape for n, p in model.named_parameters()} == shapes and all(
            torch.equal(before[n], p) for n, p in model.state_dict().items()
        )
        addresses = {p.data_ptr() for p in model.parameters()}
        assert not addresses & {p.data_ptr() for p in smaller.parameters()}
        assert model.config.num_attention_heads == 4 and anatomy(model).blocks[0].neurons.count == 64
    assert anatomy(smaller).blocks[0].neurons.count == 32


@pytest.mark.parametrize("name", NAMES)
def test_cutting_twice_is_cutting_once(name):
    model = ARCHITECTURES[name]()
    units = cuts(model, "uneven")
    once = remove(model, Masks.from_units(model, units))
    twice = model
    for kind in ("neurons", "heads"):
        twice = remove(twice, Masks.from_units(twice, {key: keep for key, keep in units.items() if key[1] == kind}))
    assert all(torch.equal(a, b) for a, b in zip(once.state_dict().values(), twice.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_bits(dtype):
    model = ARCHITECTURES["qwen2"]().to(dtype)
    units = cuts(model, "uniform")
    smaller = remove(model, Masks.from_units(model, units))
    block, cut = anatomy(model).blocks[1], anatomy(smaller).blocks[1]
    assert cut.linears["down"].weight.dtype == dtype
    assert torch.equal(cut.linears["down"].weight, block.linears["down"].weight[:, units[1, "neurons"]])


def test_tied_embeddings_stay_tied():
    model = ARCHITECTURES["mistral"]()
    smaller = remove(model, Masks.from_units(model, cuts(model, "uneven")))
    assert smaller.lm_head.weight is smaller.get_input_embeddings().weight


def reloads_plainly(cls, folder, data, expected):
    "Whether from_pretrained opens a folder without an error and with the right outputs."
    try:
        return torch.equal(logits(cls.from_pretrained(folder), data), expected)
    except (ValueError, RuntimeError, OSError, StrictDataclassError):
        return False


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_is_what_happens(name, tmp_path):
    "Every announced loader is tried, also the announcement that from_pretrained will not do."
    model = ARCHITECTURES[name]()
    cls = type(model)
    for cut in ("uniform neurons", "uniform", "uneven"):
        masks = Masks.from_units(model, cuts(model, cut))
        before, smaller = reload_plan(model, widths_after(model, masks)), remove(model, masks)
        assert reload_plan(smaller).loader == before.loader and before.why
        if cut == "uniform neurons":
            assert before.loader == "from_pretrained"
        if cut == "uneven":
            assert before.loader == "load_pruned"
        if cut == "uniform" and name in PLAIN_HEADS:
            assert before.loader == "from_pretrained"
        folder = tmp_path / cut
        smaller.save_pretrained(folder)
        if before.loader == "from_pretrained":
            data = batch(name, padded=True)
            assert torch.equal(logits(cls.from_pretrained(folder), data), logits(smaller, data))
        else:
            assert not reloads_plainly(cls, folder, batch(name), logits(smaller, batch(name)))


@pytest.mark.slow
def test_a_fresh_process_without_this_library_loads_what_is_plain(tmp_path):
    "All architectures in one process that only knows transformers."
    expected = {}
    for name in NAMES:
        model = ARCHITECTURES[name]()
        smaller = remove(
            model, Masks.from_units(model, cuts(model, "uniform" if name in PLAIN_HEADS else "uniform neurons"))
        )
        smaller.save_pretrained(tmp_path / name)
        torch.save({k: v for k, v in batch(name, padded=True).items() if k != "labels"}, tmp_path / f"{name}.in")
        expected[name] = logits(smaller, batch(name, padded=True))
    script = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
for name in {NAMES!r}:
    auto = AutoModelForCausalLM if name in {DECODERS!r} else AutoModelForSequenceClassification
    model, data = auto.from_pretrained(f"{tmp_path}/{{name}}").eval(), torch.load(f"{tmp_path}/{{name}}.in")
    with torch.inference_mode():
        torch.save(model(**data).logits, f"{tmp_path}/{{name}}.out")
assert "pruneresearch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    for name in NAMES:
        assert torch.allclose(torch.load(tmp_path / f"{name}.out"), expected[name], atol=1e-5), name


def test_widths_can_be_known_before_scores():
    model = ARCHITECTURES["bert"]()
    assert widths_for(model, 0.3, "neurons") == [{"heads": 4, "neurons": 64 - 19}] * 2
    assert widths_for(model, [0.25, 0.5], "heads") == [{"heads": 3, "neurons": 64}, {"heads": 2, "neurons": 64}]
    with pytest.raises(UsageError, match="2 blocks"):
        widths_for(model, [0.5], "heads")


@pytest.mark.parametrize("name", NAMES)
def test_folding_is_the_best_constant(name):
    "One group cut: the consumer's output keeps its mean over the calibration tokens, computed here by own hooks."
    model, data = ARCHITECTURES[name](), [batch(name, padded=True, seed=s) for s in range(3)]
    block = anatomy(model).blocks[1]
    units = {(1, "neurons"): kept(64, 20)}
    masks = Masks.from_units(model, units)
    folded = remove(model, masks, fold=data)
    role = "down" if "down" in block.linears else "fc2"
    means = []
    for m in (model, folded):
        outputs, real_tokens = [], [one["attention_mask"].bool() for one in data]
        hook = (
            anatomy(m)
            .blocks[1]
            .linears[role]
            .register_forward_hook(lambda module, inputs, output, outputs=outputs: outputs.append(output.detach()))
        )
        for one in data:
            logits(m, one)
        hook.remove()
        tokens = [output.reshape(*real.shape, -1)[real] for output, real in zip(outputs, real_tokens, strict=True)]
        means.append(torch.cat(tokens).double().mean(0))
    assert torch.allclose(means[0], means[1], atol=1e-5)
    plain = anatomy(remove(model, masks)).blocks[1].linears[role].bias
    assert plain is None or not torch.allclose(plain, anatomy(folded).blocks[1].linears[role].bias)
    if block.linears[role].bias is None:
        assert reload_plan(folded).loader == "load_pruned"


def test_bad_requests_change_nothing():
    model = ARCHITECTURES["bert"]()
    before = copy.deepcopy(model.state_dict())
    fc1, fc2 = (f"bert.encoder.layer.0.{n}.dense.weight" for n in ("intermediate", "output"))
    none = torch.zeros(32, 64, dtype=torch.bool)
    half = torch.arange(64) < 32
    for masks, words in (
        (Masks({fc1: torch.rand(64, 32) > 0.5}), "whole heads or neurons"),
        (Masks({fc2: half.expand(32, 64).clone(), fc1: torch.rand(64, 32) > 0.5}), "whole heads or neurons"),
        (Masks({fc1: half[:, None].expand(64, 32).clone()}), "whole heads or neurons"),
        (Masks({fc2: none}), "must stay"),
        (Masks({"classifier.weight": torch.zeros(2, 32, dtype=torch.bool)}), "whole heads or neurons"),
        (Masks({fc2: torch.ones(32, 60, dtype=torch.bool)}), "another model"),
        (Masks({"transformer.h.0.weight": none}), "another model"),
    ):
        with pytest.raises(UsageError, match=words):
            remove(model, masks, inplace=True)
    good = Masks.from_units(model, {(0, "neurons"): half})
    masked = copy.deepcopy(model)
    good.apply(masked)
    with pytest.raises(UsageError, match="nothing to fold"):
        remove(masked, good, fold=[batch("bert")], inplace=True)
    with pytest.raises(UsageError, match="calibration"):
        remove(model, good, fold="text", inplace=True)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())


def test_a_column_mask_is_enough():
    "A unit whose columns are masked is gone, whatever its rows hold."
    model = ARCHITECTURES["opt"]()
    masks = Masks.from_units(model, {(0, "neurons"): kept(64, 9)})
    only = Masks({name: keep for name, keep in masks.keep.items() if name.endswith("fc2.weight")})
    assert len(only.keep) == 1
    assert torch.equal(logits(remove(model, only), batch("opt")), logits(remove(model, masks), batch("opt")))
    assert only.units(model).keys() == masks.units(model).keys()


def test_shared_blocks_are_refused():
    model = ARCHITECTURES["bert"]()
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    with pytest.raises(UsageError, match="shares"):
        remove(model, Masks.from_units(model, {(0, "neurons"): kept(64, 9), (1, "neurons"): kept(64, 9)}))


def test_bert_small_has_the_published_number_of_parameters():
    from transformers import BertConfig, BertForSequenceClassification

    model = BertForSequenceClassification(
        BertConfig(hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, num_labels=2)
    )
    units = {(i, "heads"): kept(8, n) for i, n in enumerate((8, 8, 6, 1))} | {
        (i, "neurons"): kept(2048, n) for i, n in enumerate((2048, 2048, 193, 83))
    }
    smaller = remove(model, Masks.from_units(model, units))
    assert (
        sum(p.numel() for p in model.parameters()) == 28_764_674
        and sum(p.numel() for p in smaller.parameters()) == 23_667_798
    )
    assert [b.linears["q"].weight.shape[0] for b in anatomy(smaller).blocks] == [512, 512, 384, 64]
