"Metrics: values that can be checked by hand, and no trace on disk."

import math
import pickle
import subprocess
import sys

import evaluate
import numpy as np
import pytest
import torch

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data.evaluate_metrics import load_metric
from pruneresearch.data.metrics import (
    COMPUTED,
    METRICS,
    answer_f1,
    compute_metric,
    higher_is_better,
    is_log_scale,
    normalise_answer,
)


def attempt(call):
    try:
        return call()
    except (UsageError, RunError) as error:
        return error


def score(name, predictions, references, **options):
    "Compute a metric as a function and as an object of `evaluate`: both must agree to the last bit, errors included."
    plain = attempt(lambda: compute_metric(name, predictions, references, **options))
    other = attempt(lambda: load_metric(name).compute(predictions=predictions, references=references, **options))
    assert repr(plain) == repr(other)
    if isinstance(plain, Exception):
        raise plain
    return plain


CONFUSION = (
    [1] * 6 + [0] * 4,
    [1, 1, 1, 1, 0, 0, 1, 0, 0, 0],
)  # 4 true positives, 2 false ones, 1 missed, 3 true negatives


@pytest.mark.parametrize(
    "name, value",
    [
        ("accuracy", 7 / 10),
        ("precision", 4 / 6),
        ("recall", 4 / 5),
        ("f1", 2 * 4 / (2 * 4 + 2 + 1)),
        ("matthews", (4 * 3 - 2 * 1) / math.sqrt(6 * 5 * 5 * 4)),
    ],
)
def test_classification_by_hand(name, value):
    assert score(name, *CONFUSION)[name] == pytest.approx(value)


def test_every_metric_has_its_name_as_key_except_question_answering():
    for name in set(COMPUTED) - {"squad", "squad_v2"}:
        assert set(score(name, [1, 0, 1], [1, 1, 0])) == {name}


def test_macro_f1_is_the_mean_over_classes():
    assert score("f1", [0, 1, 1, 2], [0, 1, 2, 2], average="macro")["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


@pytest.mark.parametrize("name", ["f1", "precision", "recall", "matthews"])
def test_constant_predictions_score_zero(name):
    assert score(name, [0, 0, 0], [1, 0, 1]) == {name: 0.0}


def test_correlations_by_hand():
    x, y = [1.0, 2.0, 3.0, 5.0], [2.0, 1.0, 4.0, 30.0]
    dx, dy = np.subtract(x, np.mean(x)), np.subtract(y, np.mean(y))
    assert score("pearson", x, y)["pearson"] == pytest.approx(dx @ dy / np.sqrt((dx @ dx) * (dy @ dy)))
    assert score("spearman", x, y)["spearman"] == pytest.approx(1 - 6 * (1 + 1 + 0 + 0) / (4 * 15))  # Σd² = 2
    assert score("spearman", [1.0, 2.0, 3.0], [-1.0, -10.0, -11.0])["spearman"] == pytest.approx(-1)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
def test_correlation_without_variation_and_with_divergence(name):
    assert score(name, [2.0, 2.0], [1.0, 2.0]) == {name: 0.0}
    with pytest.raises(RunError, match="prediction 1"):
        score(name, [1.0, float("nan"), 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(RunError, match="reference 0"):
        score(name, [1.0, 2.0], [float("inf"), 2.0])


def test_perplexity_is_over_all_tokens_not_over_batches():
    tokens = [0.5] * 7 + [0.125]
    nll = -np.log(tokens)
    whole = score("perplexity", [nll.sum()], [8])["perplexity"]
    assert whole == pytest.approx(np.prod(tokens) ** (-1 / 8))
    assert score("perplexity", [nll[:7].sum(), nll[7:].sum()], [7, 1])["perplexity"] == pytest.approx(whole)
    assert score("perplexity", [0.0], [5]) == {"perplexity": 1.0}
    assert score("perplexity", [1e9], [5])["perplexity"] == math.inf
    assert math.isnan(score("perplexity", [float("nan")], [5])["perplexity"])
    with pytest.raises(UsageError, match="at least one"):
        score("perplexity", [0.0], [0])


@pytest.mark.parametrize(
    "text, normal",
    [
        ("The Cat!", "cat"),
        ("an  apple, a day", "apple day"),
        ("Theatre", "theatre"),
        ("U.S.", "us"),
        ("", ""),
        ("the", ""),
    ],
)
def test_normalisation(text, normal):
    assert normalise_answer(text) == normal


@pytest.mark.parametrize(
    "prediction, reference, value",
    [
        ("a b c", "b c d", 2 * 2 / (2 + 3)),  # the article is no word: "b c" against "b c d"
        ("red red blue", "red green", 2 * 1 / (3 + 2)),  # shared words count once per occurrence
        ("x", "y", 0),
        ("", "", 1),
        ("the", "", 1),
        ("", "y", 0),
    ],
)
def test_answer_f1(prediction, reference, value):
    assert answer_f1(prediction, reference) == pytest.approx(value)


def answer(key, *texts):
    return {"id": key, "answers": {"text": list(texts), "answer_start": [0] * len(texts)}}


def said(key, text):
    return {"id": key, "prediction_text": text}


def test_squad_takes_the_best_reference_and_ids_not_order():
    result = score(
        "squad", [said("q2", "nine lives"), said("q1", "the cat")], [answer("q1", "Dog", "Cat"), answer("q2", "nine")]
    )
    assert result == {"exact_match": 0.5, "f1": pytest.approx((1 + 2 / 3) / 2)}


def test_squad_v2_separates_the_two_kinds_of_questions():
    references = [answer("q1", "cat"), answer("q2"), answer("q3")]
    result = score("squad_v2", [said("q1", ""), said("q2", ""), said("q3", "dog")], references)
    assert result == {
        "f1": pytest.approx(1 / 3),
        "exact_match": pytest.approx(1 / 3),
        "has_answer_f1": 0,
        "has_answer_exact_match": 0,
        "no_answer_accuracy": 0.5,
    }
    assert "no_answer_accuracy" not in score("squad_v2", [said("q1", "cat")], references[:1])


def test_missing_prediction_is_named():
    with pytest.raises(UsageError, match="'q2'"):
        score("squad", [said("q1", "a"), said("q1", "b")], [answer("q1", "a"), answer("q2", "b")])


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda: load_metric("acc"), "accuracy"),
        (lambda: load_metric("kl"), "unknown metric 'kl'"),
        (lambda: compute_metric("acc", [1], [1]), "accuracy"),
        (lambda: compute_metric("loss", [1], [1]), "unknown metric 'loss'"),
        (lambda: higher_is_better("acuracy"), "did you mean 'accuracy'"),
        (lambda: is_log_scale("acuracy"), "did you mean 'accuracy'"),
        (lambda: score("accuracy", [1], [1, 0]), "1 predictions and 2 references"),
        (lambda: score("accuracy", [], []), "nothing to measure"),
    ],
)
def test_usage_errors(call, text):
    with pytest.raises(UsageError, match=text):
        call()


def test_every_metric_declares_direction_and_scale():
    down = {name for name in METRICS if not higher_is_better(name)}
    assert down == {"perplexity", "loss", "mse", "kl"}
    assert [name for name in METRICS if is_log_scale(name)] == ["perplexity"]
    known = "accuracy f1 precision recall matthews matthews_correlation pearson spearman spearmanr exact exact_match"
    assert {*known.split(), "top1_agreement", "squad", "squad_v2"} == set(METRICS) - down


def test_functions_take_arrays_and_tensors():
    for convert in (np.array, torch.tensor):
        assert compute_metric("accuracy", convert([1, 0, 1]), convert([1, 1, 1])) == {"accuracy": 2 / 3}
        assert compute_metric("perplexity", convert([0.0]), convert([5])) == {"perplexity": 1.0}


def test_batches_tensors_and_reuse():
    metric = load_metric("accuracy")
    for _ in range(2):  # nothing is left over from the first round
        metric.add_batch(predictions=torch.tensor([1, 0]), references=torch.tensor([1, 1]))
        metric.add_batch(predictions=np.array([1]), references=np.array([1]))
        assert metric.compute() == {"accuracy": pytest.approx(2 / 3)}


def test_metrics_do_not_share_state():
    first, second = load_metric("accuracy"), load_metric("accuracy")
    first.add_batch(predictions=[1], references=[0])
    assert second.compute(predictions=[1], references=[1]) == {"accuracy": 1.0}
    assert first.compute() == {"accuracy": 0.0}


def test_nothing_is_written_and_no_lock_is_shared_with_other_processes(tmp_path, monkeypatch):
    blocked = tmp_path / "a file, so no folder can be made below it"
    blocked.write_text("")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(blocked / "metrics"))

    def no_lock(*arguments, **named):
        raise AssertionError("a metric asked for a lock file")

    monkeypatch.setattr(evaluate.module, "FileLock", no_lock)
    monkeypatch.chdir(tmp_path)
    for name in set(COMPUTED) - {"squad", "squad_v2"}:
        score(name, [1, 0, 1], [1, 1, 0])
    score("squad", [said("q1", "a")], [answer("q1", "a")])
    assert list(tmp_path.iterdir()) == [blocked]


def test_metrics_compute_in_a_pickled_copy():
    metric = load_metric("accuracy")
    copy = pickle.loads(pickle.dumps(type(metric)))()
    assert copy.compute(predictions=[1, 0], references=[1, 1]) == metric.compute(predictions=[1, 0], references=[1, 1])


def test_metrics_compute_without_evaluate_or_datasets():
    program = """if True:
        import sys
        from pruneresearch.data.metrics import COMPUTED, compute_metric
        heavy = {"evaluate", "datasets", "transformers", "torch", "pandas", "sklearn", "scipy"}
        print(sorted(heavy & set(sys.modules)))
        for name in set(COMPUTED) - {"squad", "squad_v2"}:
            compute_metric(name, [1, 0, 1], [1, 1, 0])
        compute_metric("squad", [{"id": "1", "prediction_text": "a"}], [{"id": "1", "answers": {"text": ["a"]}}])
        print(sorted({"evaluate", "datasets", "transformers"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "[]"]
