"Inputs that a model cannot read, or that do not say which tokens are real, are refused before any work."

import pytest
import torch
import torch.nn.utils.prune
from architectures import ARCHITECTURES, COMMON, CONTEXT, VOCAB, batch, small
from transformers import BertConfig, BertForMultipleChoice, CamembertConfig, CamembertForSequenceClassification

from pruneresearch import (
    RunError,
    UsageError,
    anatomy,
    calibrate,
    evaluate_model,
    fine_tune,
    load_model,
    prune,
    recover,
)
from pruneresearch.model.calls import context_of
from pruneresearch.pruning.blocks import block_by_block

METHODS = ("wanda", "sparsegpt", "fisher", "gradprobe-loss")


def refused(model, calibration, match, method):
    "Check a refusal: at most two sentences, every weight as it was, the model usable."
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match=match) as caught:
        prune(model, calibration=calibration, method=method, sparsity=0.5)
    assert str(caught.value).count(". ") <= 1, caught.value
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def changed(**changes):
    "A good batch of a decoder with other entries."
    return {**batch("llama", padded=True), **changes}


IDS, MASK = batch("llama")["input_ids"], torch.ones(4, 12)
WRONG = {
    "an id beyond the vocabulary": (lambda: changed(input_ids=IDS + VOCAB), f"this model knows 0 to {VOCAB - 1}"),
    "an id below zero": (lambda: changed(input_ids=IDS - 9), "token ids go from -"),
    "more tokens than the context": (lambda: batch("llama", length=CONTEXT + 1), f"this model can read {CONTEXT}"),
    "no dimension for the examples": (lambda: {name: value[0] for name, value in batch("llama").items()}, r"\[None\]"),
    "a scalar": (lambda: changed(number=torch.tensor(3)), "one entry per example"),
    "labels of other examples": (lambda: changed(labels=IDS[:2]), "labels 2"),
    "a mask of zeros": (lambda: changed(attention_mask=MASK * 0), "no real token"),
    "one row without a real token": (
        lambda: changed(attention_mask=MASK * torch.tensor([[1], [1], [0], [1]])),
        "no real",
    ),
    "a mask of four dimensions": (lambda: changed(attention_mask=MASK[:, None, None]), "one entry per token"),
    "a mask that is added": (lambda: changed(attention_mask=(1 - MASK.tril()) * -1e9), "other values than 1 and 0"),
    "a mask of another length": (lambda: changed(attention_mask=MASK[:, :5]), "one entry per token"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_cannot_be_read_is_refused(name, method):
    make, match = WRONG[name]
    refused(ARCHITECTURES["llama"](), [batch("llama"), make()], match, method)


@pytest.mark.parametrize("method", ["gradient", "taylor", "fisher", "hebbian", "gradprobe-ratio"])
def test_gradients_inside_inference_mode_are_refused(method):
    model = ARCHITECTURES["llama"]()
    with torch.inference_mode():
        refused(model, [batch("llama")], "inference_mode", method)
        made = ARCHITECTURES["llama"]()
    with pytest.raises(UsageError, match="made in it"):
        prune(made, calibration=[batch("llama")], method=method, sparsity=0.5)
    with torch.no_grad():
        assert prune(model, calibration=[batch("llama")], method=method, sparsity=0.5).achieved > 0.3


@pytest.mark.parametrize("method", ["gradient", "fisher", "gradprobe-loss"])
def test_a_batch_without_labels_or_a_model_without_a_head(method):
    unlabelled = {name: value for name, value in batch("llama").items() if name != "labels"}
    refused(ARCHITECTURES["llama"](), [unlabelled], "no labels", method)
    refused(ARCHITECTURES["llama"]().model, [batch("llama")], "no head whose loss is known", method)


def test_lengths_beyond_the_context(pydocs, tmp_path):
    model = load_model("tiny-llama", pydocs, device="cpu")
    context = context_of(model)
    for call in (
        lambda: prune(model, pydocs, method="wanda", sparsity=0.5, length=500),
        lambda: evaluate_model(model, pydocs, length=500),
        lambda: recover(model, pydocs, length=500, max_steps=1),
        lambda: fine_tune(model, pydocs, length=500, max_steps=1),
    ):
        with pytest.raises(UsageError, match=f"500 tokens is more than the {context}"):
            call()


def test_positions_that_begin_after_the_padding_index():
    settings = COMMON | dict(max_position_embeddings=CONTEXT + 2, pad_token_id=1)
    model = small(CamembertForSequenceClassification, CamembertConfig, settings)
    assert context_of(model) == context_of(ARCHITECTURES["roberta"]()) == CONTEXT
    model(torch.full((1, CONTEXT), 5))
    with pytest.raises(RuntimeError, match="out of bounds"):
        model(torch.full((1, CONTEXT + 1), 5))


# ---- padding that has a dimension for the choices


def choices(padded):
    ids = torch.randint(5, VOCAB, (3, 4, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[0, 1, 4:], mask[1, :, 5:], mask[2, 3, 1:] = 0, 0, 0
    return dict(input_ids=ids * mask, attention_mask=mask, labels=torch.tensor([0, 3, 1]))


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_padding_of_choices_counts_nowhere(padded):
    model, data = small(BertForMultipleChoice, BertConfig, COMMON), choices(padded)
    linears = anatomy(model).linears
    expected = {name: 0 for name in linears}
    sequences = zip(data["input_ids"].flatten(0, 1), data["attention_mask"].flatten(0, 1).bool(), strict=True)

    def note(name):
        def add(module, inputs):
            expected[name] = expected[name] + inputs[0].detach().double().square().flatten(0, -2).sum(0)

        return add

    handles = [linear.register_forward_pre_hook(note(name)) for name, linear in linears.items()]
    for ids, real in sequences:
        model.bert(input_ids=ids[real][None])
    for handle in handles:
        handle.remove()
    seen = calibrate(model, [data], linears, ["norm", "gram"])
    walked = {
        name: found for _, part in block_by_block(model, [data], ["norm", "gram"]) for name, found in part.items()
    }
    for name, total in expected.items():
        torch.testing.assert_close(seen[name].norm, total.sqrt().float(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(walked[name].norm, seen[name].norm, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(walked[name].gram, seen[name].gram, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "fisher", "gradprobe-loss", "activation-change"])
def test_batches_of_choices_may_be_split(method):
    pattern = dict(pattern="heads") if method == "activation-change" else {}
    masks = []
    for parts in (1, 3):
        model, data = small(BertForMultipleChoice, BertConfig, COMMON), choices(True)
        batches = [{name: value[i::parts] for name, value in data.items()} for i in range(parts)]
        masks.append(prune(model, calibration=batches, method=method, sparsity=0.5, **pattern).masks.keep)
    same = [(masks[0][name] == masks[1][name]).float().mean() for name in masks[0]]
    assert min(same) > 0.99


def test_a_layer_that_reads_other_positions_than_the_mask_is_refused():
    class Pooled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.layer = torch.nn.Embedding(9, 4), torch.nn.Linear(4, 2)

        def forward(self, input_ids, attention_mask=None):
            pairs = self.table(input_ids).unflatten(1, (-1, 2)).mean(2)  # every two tokens become one position
            return self.layer(pairs).mean(1)

    data = dict(input_ids=torch.ones(2, 6, dtype=torch.long), attention_mask=torch.ones(2, 6, dtype=torch.long))
    model = Pooled()
    assert prune(model, calibration=[data], method="wanda", sparsity=0.5).achieved == 0.5
    data["attention_mask"][0, 4:] = 0
    with pytest.raises(Exception, match="reads 3 positions of an example whose attention_mask has 6"):
        prune(Pooled(), calibration=[data], method="wanda", sparsity=0.5)


# ---- every family, every kind of refusal


def leftover(model):
    last = list(anatomy(model).linears.values())[-1]
    torch.nn.utils.prune.l1_unstructured(last, "weight", 0.3)


def codes(model):
    last = list(anatomy(model).linears.values())[-1]
    last.weight = torch.nn.Parameter(last.weight.detach().mul(50).to(torch.int8), requires_grad=False)


def not_a_number(model):
    list(anatomy(model).linears.values())[-1].weight.data[0, 0] = float("nan")


def nothing(model):
    pass


REFUSALS = {  # what is wrong: (what is done to the model, what to the batch, what the message says)
    "ids": (nothing, lambda data: data | dict(input_ids=data["input_ids"] + VOCAB), "this model knows 0 to"),
    "mask": (nothing, lambda data: data | dict(attention_mask=0 * data["attention_mask"]), "no real token"),
    "context": (nothing, lambda data: {n: v.repeat(1, 9) if v.dim() > 1 else v for n, v in data.items()}, "can read"),
    "rows": (nothing, lambda data: data | dict(labels=data["labels"][:1]), "one entry per example"),
    "leftover": (leftover, dict, "torch.nn.utils.prune"),
    "codes": (codes, dict, "int8"),
    "NaN": (not_a_number, dict, "NaN"),
}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "taylor"])
@pytest.mark.parametrize("kind", REFUSALS)
@pytest.mark.parametrize("family", ARCHITECTURES)
def test_every_family_is_as_it_was_after_every_refusal(family, kind, method):
    spoil, change, says = REFUSALS[kind]
    model, good = ARCHITECTURES[family](), batch(family)
    spoil(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.raises((UsageError, RunError), match=says):
        prune(model, calibration=[good, change(good)], method=method, sparsity=0.5)
    after = model.state_dict()
    assert all(torch.equal(after[n].nan_to_num(7), value.nan_to_num(7)) for n, value in before.items())
    assert [module.training for module in model.modules()] == modes
    hooked = [m for m in model.modules() if m._forward_hooks or (m._forward_pre_hooks and kind != "leftover")]
    assert not hooked
