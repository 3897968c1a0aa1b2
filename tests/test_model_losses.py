"The loss of an example is what the model's own head says of a batch of that one example."

import pytest
import torch
import transformers
from architectures import COMMON, DISTILBERT, GPT_NEO, OPT, VOCAB, small

from pruneresearch import UsageError, anatomy, calibrate, prune
from pruneresearch.methods.fisher_search import mask_gradients
from pruneresearch.model.losses import example_losses, prediction_counts
from pruneresearch.training.distillation import recovery_loss

N, LENGTH, CHOICES, LABELS = 3, 7, 4, 5
SETTINGS = {
    "Bert": COMMON,
    "Roberta": COMMON,
    "DistilBert": DISTILBERT,
    "Llama": COMMON | dict(num_key_value_heads=2, pad_token_id=0),
    "Mistral": COMMON | dict(num_key_value_heads=2, pad_token_id=0),
    "Qwen2": COMMON | dict(num_key_value_heads=2, pad_token_id=0),
    "OPT": OPT | dict(pad_token_id=0),
    "GPTNeo": GPT_NEO | dict(pad_token_id=0),
}
HEADS = {  # kind of head → (settings of the configuration, labels)
    "ForCausalLM": ({}, lambda ids: dict(labels=masked(ids))),
    "LMHeadModel": (dict(is_decoder=True), lambda ids: dict(labels=masked(ids))),
    "ForMaskedLM": ({}, lambda ids: dict(labels=masked(ids))),
    "ForTokenClassification": (
        dict(num_labels=LABELS),
        lambda ids: dict(labels=masked(ids) % LABELS * (masked(ids) >= 0) + masked(ids) * (masked(ids) < 0)),
    ),
    "ForSequenceClassification": (dict(num_labels=LABELS), lambda ids: dict(labels=ids[:, 1] % LABELS)),
    "ForSequenceClassification regression": (dict(num_labels=1), lambda ids: dict(labels=ids[:, 1].float())),
    "ForSequenceClassification several labels": (
        dict(num_labels=LABELS),
        lambda ids: dict(labels=(ids[:, :LABELS] % 2).float()),
    ),
    "ForSequenceClassification several numbers": (
        dict(num_labels=LABELS, problem_type="regression"),
        lambda ids: dict(labels=ids[:, :LABELS].float()),
    ),
    "ForQuestionAnswering": (
        {},
        lambda ids: dict(start_positions=ids[:, 1] % 4, end_positions=torch.tensor([3, 4, 2])),
    ),
    "ForMultipleChoice": ({}, lambda ids: dict(labels=ids[:, 0, 1] % CHOICES)),
    "ForNextSentencePrediction": ({}, lambda ids: dict(labels=ids[:, 1] % 2)),
}
CASES = [
    (family, head)
    for family in SETTINGS
    for head in HEADS
    if hasattr(transformers, family + head.split()[0]) and (head != "LMHeadModel" or family == "Bert")
]


def masked(ids):
    "Labels of tokens, some of them without a loss, not as many in each row."
    labels = ids.clone()
    labels[0, :2], labels[1, 3] = -100, -100
    return labels


def with_head(family, head):
    "A small random model."
    model_class = getattr(transformers, family + head.split()[0])
    return small(model_class, getattr(transformers, f"{family}Config"), SETTINGS[family], **HEADS[head][0])


def batch_for(head, padded):
    "Inputs and labels; rows of different lengths where they are padded."
    random = torch.Generator().manual_seed(1)
    shape = (N, CHOICES, LENGTH) if head == "ForMultipleChoice" else (N, LENGTH)
    ids = torch.randint(5, VOCAB, shape, generator=random)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), **HEADS[head][1](ids))
    if padded:
        batch["input_ids"][1:, ..., 5:] = 0
        batch["attention_mask"][1:, ..., 5:] = 0
        if batch.get("labels") is not None and batch["labels"].shape == ids.shape:
            batch["labels"][1:, 5:] = -100
    return batch


def single(batch, i):
    "One example as a batch, without its padding; over the places of an answer transformers counts padding in."
    row = {name: value[i : i + 1] for name, value in batch.items()}
    if "start_positions" in row:
        return row
    keep = row["attention_mask"].reshape(-1, LENGTH)[0].bool()
    return {
        name: value[..., keep] if value.shape[-1] == LENGTH and value.dim() > 1 else value
        for name, value in row.items()
    }


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("family, head", CASES)
def test_losses_and_gradients_are_those_of_the_model_itself(family, head, padded):
    model, batch = with_head(family, head), batch_for(head, padded)
    linears = anatomy(model).linears
    seen = calibrate(model, [batch], linears, ["gradient", "squared_gradient"])
    losses = example_losses(model, batch)
    total, squares = 0, {name: 0 for name in linears}
    for i in range(N):
        alone = single(batch, i)
        problem = model.config.problem_type
        own = model(**alone).loss
        model.config.problem_type = problem
        assert torch.allclose(losses[i], own, rtol=1e-4, atol=1e-5)
        gradients = torch.autograd.grad(own, [linear.weight for linear in linears.values()], allow_unused=True)
        gradients = [torch.zeros(()) if g is None else g for g in gradients]
        squares = {name: squares[name] + g.square() for name, g in zip(linears, gradients, strict=True)}
        total = [g / N + (total[j] if total else 0) for j, g in enumerate(gradients)]
    for name, gradient in zip(linears, total, strict=True):
        assert torch.allclose(seen[name].gradient, gradient, rtol=1e-3, atol=1e-5), name
        assert torch.allclose(seen[name].squared_gradient, squares[name], rtol=1e-3, atol=1e-6), name


def test_every_head_of_our_families_is_here():
    assert len(CASES) >= 35 and {head for _, head in CASES} == set(HEADS)


@pytest.mark.parametrize("method", ["gradient", "taylor", "fisher", "hebbian", "gradprobe-loss"])
def test_a_loss_of_ones_own_is_refused_before_any_work(method):
    class Weighted(transformers.BertForTokenClassification):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.loss = None if output.loss is None else 3 * output.loss
            return output

    model = small(Weighted, transformers.BertConfig, COMMON, num_labels=LABELS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UsageError, match="loss of your own"):
        prune(model, calibration=[batch_for("ForTokenClassification", False)], method=method, sparsity=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.config.problem_type is None
    prune(model, calibration=[batch_for("ForTokenClassification", False)], method="wanda", sparsity=0.5)


@pytest.mark.parametrize("make", [lambda: with_head("Bert", "Model"), lambda: with_head("Bert", "ForPreTraining")])
def test_a_head_whose_loss_is_not_known_is_refused(make):
    HEADS.setdefault("Model", ({}, None)), HEADS.setdefault("ForPreTraining", ({}, None))
    batch = batch_for("ForMaskedLM", False)
    with pytest.raises(UsageError, match="no head whose loss is known"):
        prune(make(), calibration=[batch], method="gradient", sparsity=0.5)
    prune(make(), calibration=[batch], method="wanda", sparsity=0.5)


@pytest.mark.parametrize(
    "head, labels, says",
    [
        ("ForSequenceClassification", torch.tensor([1, 2, 5]), "a label is 5"),
        ("ForSequenceClassification", torch.tensor([1, -1, 2]), "a label is -1"),
        ("ForTokenClassification", torch.full((N, LENGTH), 7), "a label is 7"),
        ("ForMultipleChoice", torch.tensor([0, 1, 4]), "a label is 4"),
        ("ForMaskedLM", torch.full((N, LENGTH), VOCAB), f"a label is {VOCAB}"),
    ],
)
def test_labels_out_of_range_are_refused(head, labels, says):
    model, batch = with_head("Bert", head), batch_for(head, False) | dict(labels=labels)
    with pytest.raises(UsageError, match=says):
        prune(model, calibration=[batch], method="gradient", sparsity=0.5)


# ---- what else counts predictions


@pytest.mark.parametrize("head", ["ForTokenClassification", "ForMaskedLM"])
def test_a_teacher_is_compared_where_a_tagger_predicts(head):
    student, teacher = (
        with_head("Bert", head),
        small(getattr(transformers, f"Bert{head}"), transformers.BertConfig, COMMON | HEADS[head][0], seed=1),
    )
    batch = batch_for(head, False)
    labelled = batch["labels"] != -100
    with torch.no_grad():
        logits = [model(batch["input_ids"]).logits[labelled] / 2 for model in (student, teacher)]
        own, wanted = (values.log_softmax(-1) for values in logits)
        expected = 4 * (wanted.exp() * (wanted - own)).sum(-1).mean()
        assert torch.allclose(recovery_loss(student, batch, teacher, alpha=0.0, temperature=2.0), expected, rtol=1e-4)


def test_a_teacher_of_several_labels_is_compared_label_by_label():
    head = "ForSequenceClassification several labels"
    student, batch = with_head("Bert", head), batch_for(head, False)
    teacher = small(
        transformers.BertForSequenceClassification, transformers.BertConfig, COMMON, seed=1, num_labels=LABELS
    )
    with torch.no_grad():
        p, q = (model(batch["input_ids"]).logits.sigmoid() for model in (teacher, student))
        expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
        assert torch.allclose(recovery_loss(student, batch, teacher, alpha=0.0, temperature=1.0), expected, rtol=1e-4)


@pytest.mark.parametrize("head, counts", [("ForCausalLM", [5, 5, 6]), ("ForTokenClassification", [5, 6, 7])])
def test_a_mean_over_tokens_counts_those_that_are_predicted(head, counts):
    family = "Llama" if head == "ForCausalLM" else "Bert"
    assert prediction_counts(with_head(family, head), batch_for(head, False)).tolist() == counts


@pytest.mark.parametrize(
    "head", [name for name in HEADS if name in ("ForMultipleChoice", "ForTokenClassification", "ForMaskedLM")]
)
def test_mask_gradients_of_every_head(head):
    model, batch = with_head("Bert", head), batch_for(head, True)
    found = mask_gradients(model, [batch], ("heads", "neurons"))
    group = anatomy(model).blocks[0].heads
    for unit in range(group.count):
        losses = []
        for scale in (1 - 1e-3, 1 + 1e-3):
            columns = slice(unit * group.columns, (unit + 1) * group.columns)

            def turned(module, inputs, columns=columns, scale=scale):
                x = inputs[0].clone()
                x[..., columns] *= scale
                return (x,)

            hook = group.linears[group.consumer].register_forward_pre_hook(turned)
            with torch.no_grad():
                losses.append(example_losses(model, batch).double())
            hook.remove()
        slope = (losses[1] - losses[0]) / 2e-3
        assert torch.allclose(found[0, "heads"][:, unit].double(), slope, rtol=0.05, atol=2e-3)
