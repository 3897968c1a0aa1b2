"Measurements against slow loops, hand counts and models whose value is known."

import math
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data.tasks import Task, load_task
from pruneresearch.lab.compare import outcome_mean
from pruneresearch.measure import cost
from pruneresearch.measure import quality as measure
from pruneresearch.model.mlp import SimpleMLP

WORDS = [f"w{i}" for i in range(20)]


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    plain = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    plain.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]"
    )


@pytest.fixture(scope="module")
def decoder_tokenizer():
    plain = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["[UNK]", "[END]", *WORDS])}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="[END]", pad_token="[END]")


def texts(n, seed, longest=20):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(3, longest))) for _ in range(n)]


def make_task(kind, columns, **options):
    return Task(
        "made",
        kind,
        DatasetDict({s: Dataset.from_dict(columns(i)) for i, s in enumerate(("train", "selection", "test"))}),
        **options,
    )


@pytest.fixture(scope="module")
def bert_config():
    return BertConfig(
        vocab_size=24,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=64,
    )


@pytest.fixture
def bert(bert_config, tokenizer):
    torch.manual_seed(0)
    model = BertForSequenceClassification(bert_config).eval()
    nn.init.normal_(model.classifier.weight)
    model.tokenizer = tokenizer
    return model


@pytest.fixture
def llama(decoder_tokenizer):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            vocab_size=22,
            max_position_embeddings=64,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )
    ).eval()
    model.tokenizer = decoder_tokenizer
    return model


@pytest.fixture(scope="module")
def labelled():
    return make_task(
        "classification",
        lambda i: {"sentence": texts(40, i), "label": [j % 2 for j in range(40)]},
        inputs=("sentence",),
        labels=("no", "yes"),
        metrics=("accuracy", "f1"),
    )


@pytest.fixture(scope="module")
def prose():
    return make_task(
        "language-modelling", lambda i: {"text": texts(15, i)}, inputs=("text",), metrics=("perplexity",), join="\n\n"
    )


# ---------------------------------------------------------------- quality


def test_accuracy_is_what_one_example_at_a_time_gives(bert, tokenizer, labelled):
    metrics, outcomes, weights = measure.evaluate_with_outcomes(bert, labelled, batch_size=7)
    slow = []
    for text, label in zip(labelled.splits["test"]["sentence"], labelled.splits["test"]["label"], strict=True):
        with torch.no_grad():
            slow.append(
                int(bert(**tokenizer(text, return_tensors="pt", return_token_type_ids=True)).logits.argmax() == label)
            )
    assert outcomes == slow and weights is None and 0 < sum(slow) < 40
    assert metrics["accuracy"] == pytest.approx(np.mean(slow)) and "f1" in metrics
    assert measure.evaluate_model(bert, labelled, batch_size=40) == metrics


def test_perplexity_is_what_a_loop_over_tokens_gives(llama, prose):
    metrics, outcomes, weights = measure.evaluate_with_outcomes(llama, prose, length=16, batch_size=3)
    ids = torch.tensor(llama.tokenizer("\n\n".join(prose.splits["test"]["text"]))["input_ids"])
    total, count, windows = 0.0, 0, []
    for start in range(0, len(ids) - 15, 16):
        window = ids[start : start + 16]
        with torch.no_grad():
            logits = llama(window[None]).logits[0].double()
        losses = [-torch.log_softmax(logits[t], 0)[window[t + 1]].item() for t in range(15)]
        total, count = total + sum(losses), count + 15
        windows.append(np.mean(losses))
    assert metrics["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5) and metrics["perplexity"] > 22
    assert outcomes == pytest.approx(windows, rel=1e-4) and weights == [15] * len(windows)
    row = dict(id="x", metric="perplexity", value=metrics["perplexity"], outcomes=outcomes, outcome_weights=weights)
    assert outcome_mean(row) == pytest.approx(math.log(metrics["perplexity"]))


def test_long_windows_reduce_the_batch_not_the_result(llama, prose, monkeypatch):
    seen, whole = [], measure.evaluate_model(llama, prose, length=16)
    original = measure.forward
    monkeypatch.setattr(measure, "TOKENS_PER_BATCH", 33)
    monkeypatch.setattr(
        measure, "forward", lambda model, batch: (seen.append(len(batch["input_ids"])), original(model, batch))[1]
    )
    assert measure.evaluate_model(llama, prose, length=16)["perplexity"] == pytest.approx(whole["perplexity"], rel=1e-5)
    assert max(seen) == 2


def test_regression_gives_correlations_and_no_outcomes(bert_config, tokenizer):
    task = make_task(
        "regression",
        lambda i: {"sentence": texts(30, i), "label": np.linspace(0, 5, 30).tolist()},
        inputs=("sentence",),
        metrics=("pearson", "spearman"),
    )
    torch.manual_seed(0)
    bert_config = BertConfig(**{**bert_config.to_dict(), "num_labels": 1})
    model = BertForSequenceClassification(bert_config).eval()
    model.tokenizer = tokenizer
    metrics, outcomes, weights = measure.evaluate_with_outcomes(model, task)
    with torch.no_grad():
        slow = [
            model(**tokenizer(t, return_tensors="pt", return_token_type_ids=True)).logits.item()
            for t in task.splits["test"]["sentence"]
        ]
    assert (
        metrics["pearson"] == pytest.approx(np.corrcoef(slow, np.linspace(0, 5, 30))[0, 1], abs=1e-4)
        and outcomes is None
        and weights is None
    )


@pytest.fixture(scope="module")
def questions():
    def columns(i):
        contexts = texts(12, 10 + i, longest=60)
        spans = [(c.split()[1], c.index(c.split()[1])) for c in contexts]
        return {
            "id": [f"{i}-{j}" for j in range(12)],
            "title": ["x"] * 12,
            "question": texts(12, 20 + i, 6),
            "context": contexts,
            "answers": [{"text": [a], "answer_start": [s]} for a, s in spans],
        }

    return make_task("question-answering", columns, inputs=("question", "context"), metrics=("squad",), metric="f1")


@pytest.mark.parametrize("metric", ["f1", "exact_match"])
def test_each_question_has_one_outcome_that_averages_to_the_metric(bert_config, tokenizer, questions, metric):
    torch.manual_seed(1)
    model = BertForQuestionAnswering(bert_config).eval()
    model.tokenizer, questions.metric = tokenizer, metric
    metrics, outcomes, weights = measure.evaluate_with_outcomes(model, questions, length=32)
    assert len(questions.encode("test", tokenizer, 32)) > len(outcomes) == 12  # several windows per question
    assert np.mean(outcomes) == pytest.approx(metrics[metric]) and weights is None and metrics["f1"] > 0


def test_modes_are_restored_also_after_an_error(bert, labelled):
    bert.train()
    bert.bert.embeddings.eval()
    before = [m.training for m in bert.modules()]
    measure.evaluate_model(bert, labelled)
    assert [m.training for m in bert.modules()] == before
    nn.init.constant_(bert.classifier.weight, float("nan"))
    with pytest.raises(RunError, match="not a number"):
        measure.evaluate_model(bert, labelled)
    assert [m.training for m in bert.modules()] == before


def test_dropout_is_off(bert, labelled):
    bert.train()
    assert measure.evaluate_model(bert, labelled) == measure.evaluate_model(bert, labelled)


def test_the_fingerprint_changes_with_the_protocol_and_not_with_the_weights(llama, prose):

    def mark(**options):
        return measure.evaluate_model(llama, prose, **options)["fingerprint"]

    first = mark(length=16)
    assert (
        len({first, mark(length=8), mark(length=16, split="selection")}) == 3 and mark(length=16, batch_size=1) == first
    )
    nn.init.zeros_(llama.lm_head.weight)
    assert mark(length=16) == first
    parts = measure.protocol(llama, prose, length=16)
    assert (
        parts["join"] == "\n\n"
        and parts["length"] == 16
        and parts["dtype"] == "float32"
        and parts["tokenizer"] != "none"
    )


def test_what_does_not_fit_is_refused(bert, bert_config, llama, labelled, prose, tokenizer):
    bare, three = (
        BertModel(bert_config),
        BertForSequenceClassification(BertConfig(**{**bert_config.to_dict(), "num_labels": 3})),
    )
    bare.tokenizer = three.tokenizer = tokenizer
    for model, task, words in (
        (bert, prose, "needs tiny-llama"),
        (llama, labelled, "needs tiny-bert"),
        (SimpleMLP(), prose, "plain network"),
        (bare, labelled, "no head"),
        (three, labelled, "gives 3 numbers"),
        (SimpleMLP(64, (8,), 4), load_task("digits"), "needs 10"),
    ):
        with pytest.raises(UsageError, match=words):
            measure.evaluate_model(model, task)
    with pytest.raises(UsageError, match="at most 64"):
        measure.evaluate_model(llama, prose, length=65)
    with pytest.raises(UsageError, match="unknown split"):
        measure.evaluate_model(llama, prose, split="validation")


# ---------------------------------------------------------------- size


def test_tied_weights_are_counted_once():
    config = LlamaConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=50,
    )
    tied, loose = (
        LlamaForCausalLM(LlamaConfig(**{**config.to_dict(), "tie_word_embeddings": tie})) for tie in (True, False)
    )
    a, b = cost.parameter_counts(tied), cost.parameter_counts(loose)
    assert (
        b["total"] - a["total"] == 50 * 32 and a["prunable"] == b["prunable"] == 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48
    )
    assert a["bytes_dense"] == 4 * a["total"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sparse_bytes_are_those_of_a_packed_checkpoint(bert, dtype):
    bert.to(dtype)
    with torch.no_grad():
        for name, p in bert.named_parameters():
            if "encoder" in name and p.dim() == 2:
                p[torch.rand(p.shape) < 0.6] = 0
    counts, packed = cost.parameter_counts(bert), 0
    for name, p in bert.named_parameters():
        if "encoder" in name and p.dim() == 2:
            packed += (
                np.packbits(p.detach().float().numpy().reshape(-1) != 0).nbytes + int((p != 0).sum()) * p.element_size()
            )
        else:
            packed += p.numel() * p.element_size()
    assert counts["bytes_sparse"] == packed < counts["bytes_dense"]
    assert counts["sparsity"] == pytest.approx(0.6, abs=0.02) and counts["sparsity_all"] < counts["sparsity"]
    wide = cost.parameter_counts(bert, scope="all-linear")
    assert wide["prunable"] == counts["prunable"] + 32 * 32 + 2 * 32  # pooler and classifier


# ---------------------------------------------------------------- cost


def test_macs_are_the_hand_count_for_both_architectures(bert, llama):
    B, T, d = 3, 11, 32
    ids = torch.randint(4, 20, (B, T))
    attention = 2 * (2 * B * T * T * d)
    per_token = sum(p.numel() for n, p in bert.named_parameters() if "encoder" in n and p.dim() == 2)
    assert cost.macs(
        bert, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    ) == B * T * per_token + attention + B * (d * d + 2 * d)
    per_token = sum(m.weight.numel() for m in llama.modules() if isinstance(m, nn.Linear))
    assert cost.macs(llama, {"input_ids": ids, "labels": ids}) == B * T * per_token + attention


def test_zeros_do_not_reduce_macs_and_smaller_matrices_do():
    batch, model = {"inputs": torch.rand(5, 64)}, SimpleMLP(64, (32,), 10)
    before = cost.macs(model, batch)
    nn.init.zeros_(model.layers[0].weight)
    assert cost.macs(model, batch) == before == 5 * (64 * 32 + 32 * 10)
    assert cost.macs(SimpleMLP(64, (16,), 10), batch) == before // 2


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.weight, self.seconds, self.calls = nn.Parameter(torch.ones(1)), seconds, 0

    def forward(self, inputs):
        self.calls += 1
        time.sleep(self.seconds)
        return inputs


def test_latency_is_the_time_of_one_pass():
    model = Sleeper(0.02).train()
    result = cost.latency(model, {"inputs": torch.ones(1)}, min_run_time=0.1)
    assert (
        0.02 <= result["median"] < 0.04
        and 0 <= result["iqr"] < 0.02
        and 5 <= result["runs"] < model.calls
        and model.training
    )


@pytest.mark.parametrize(
    "attach", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_latency_refuses_a_model_with_hooks(attach):
    model = SimpleMLP(64, (8,), 10)
    handle = getattr(model.layers[2], attach)(lambda *_: None)
    with pytest.raises(RunError, match="layers.2"):
        cost.latency(model, {"inputs": torch.rand(1, 64)})
    handle.remove()
    cost.latency(model, {"inputs": torch.rand(1, 64)}, min_run_time=0.01)


def test_latency_refuses_pytorch_masks_and_lets_the_hooks_of_transformers_through(llama):
    from torch.nn.utils import prune as torch_prune

    ids = {"input_ids": torch.randint(0, 20, (1, 8))}
    llama(**ids, output_hidden_states=True)
    cost.latency(llama, ids, min_run_time=0.01)
    torch_prune.l1_unstructured(llama.lm_head, "weight", 0.5)
    with pytest.raises(RunError, match="lm_head"):
        cost.latency(llama, ids)


def test_measured_sees_a_peak_that_is_gone_at_the_end():
    with cost.measured("cpu") as phase:
        array, begin = np.ones(25_000_000), time.monotonic()  # 200 MB
        while phase.peak_bytes < 180e6 and time.monotonic() < begin + 30:
            time.sleep(0.01)  # until the watcher had its turn
        del array
        time.sleep(0.02)
    assert 180e6 < phase.peak_bytes < 400e6 and phase.peak_total_bytes == phase.start_bytes + phase.peak_bytes
    assert 0.02 <= phase.seconds < 60 and phase.device == "cpu"


@pytest.mark.parametrize("mapped, peak", [(False, 60), (True, 90)])
def test_mapped_files_count_where_asked_for(mapped, peak, monkeypatch):
    "Scripted: the process grows by 60 of its own and 30 of a file, and the file's pages are taken back before the end."
    import psutil

    told = iter([(500, 300), (590, 330), (500, 240)])
    last = []

    def memory_info(self):
        last[:] = [next(told, last[0] if last else None)]
        return type("Memory", (), dict(rss=last[0][0], shared=last[0][1]))()

    monkeypatch.setattr(psutil.Process, "memory_info", memory_info)
    with cost.watched_memory(phase := cost.Phase("cpu", 0), mapped, interval=0.001):
        begin = time.monotonic()
        while phase.peak_bytes < peak and time.monotonic() < begin + 30:
            time.sleep(0.001)
    assert phase.peak_bytes == peak


def test_measured_ends_with_its_block_also_after_an_error():
    import threading

    threads = threading.active_count()
    with pytest.raises(ValueError):
        with cost.measured("cpu") as phase:
            raise ValueError
    assert threading.active_count() == threads and phase.seconds > 0
