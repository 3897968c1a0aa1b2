"Decoders from all sides: the dense gate, the six metrics, and the defects that such evaluations have had."

import copy
import json
import math

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES

from pruneresearch.basics.errors import UsageError
from pruneresearch.data.tasks import load_task
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.measure.text import (
    agreement,
    agreement_on,
    continuations,
    distinct,
    divergence,
    likelihood,
    repetition,
    text_quality,
    writing_speed,
)
from pruneresearch.model.loading import load_model
from pruneresearch.recipes.one_shot import (
    PRUNING_FUNCTIONS,
    ModelConfig,
    beside_published,
    execute_benchmark,
    get_wikitext2_unstructured,
    global_evaluation,
    magnitude_pruning,
    perplexity_of,
    plot_benchmark,
    structured_pruning,
    wanda_pruning,
)


@pytest.fixture(scope="module")
def llama():
    return load_model("tiny-llama")


@pytest.fixture(scope="module")
def pydocs():
    return load_task("pydocs")


SHORT = ModelConfig(n_samples=4, length=64, max_windows=8, prompts=("Return the number of",))


# --- perplexity ----------------------------------------------------------------------------------------------------


def test_the_dense_model_has_one_perplexity(llama, pydocs):
    train, test = get_wikitext2_unstructured(llama.tokenizer, task="pydocs", n_samples=2)
    ids = torch.cat([row["input_ids"][row["attention_mask"].bool()] for row in test])  # the stream as windows, in order
    length, losses, counted = test[0]["input_ids"].shape[1], 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids), length):
            window = ids[None, start : start + length]
            if window.shape[1] < 2:
                continue
            chances = llama(window).logits[0, :-1].double().log_softmax(-1)
            losses -= chances.gather(1, window[0, 1:, None]).sum().item()
            counted += window.shape[1] - 1
    direct, evaluated = math.exp(losses / counted), evaluate_model(llama, pydocs)["perplexity"]
    row = global_evaluation(ModelConfig(), 0, train, test)
    assert evaluated == pytest.approx(direct, rel=1e-4) and row["perplexity"] == pytest.approx(direct, rel=1e-4)
    assert row["ratio"] == row["achieved"] == 0 and row["kl"] == 0 and row["top1_agreement"] == 1


def test_perplexity_does_not_depend_on_batches(llama):
    batches = [
        get_wikitext2_unstructured(llama.tokenizer, task="pydocs", n_samples=2, length=64, batch_size=size)[1][
            : 16 // size
        ]
        for size in (1, 4)
    ]
    assert perplexity_of(llama, batches[0]) == pytest.approx(perplexity_of(llama, batches[1]), rel=1e-5)


# --- data ----------------------------------------------------------------------------------------------------------


def test_calibration_windows_have_the_right_shape_and_source(llama, tmp_path):
    folder = tmp_path / "c4"
    folder.mkdir()
    for split, words in (("train", "alpha beta gamma delta "), ("validation", "one two three four ")):
        (folder / f"c4-{split}.00000.json").write_text(
            "".join(json.dumps({"text": f"{i} " + words * 200}) + "\n" for i in range(20))
        )
    train, test = get_wikitext2_unstructured(
        llama.tokenizer, n_samples=6, length=32, task="pydocs", calibration="c4", data_dir=tmp_path, batch_size=4
    )
    assert [tuple(b["input_ids"].shape) for b in train] == [(4, 32), (2, 32)]
    assert "alpha" in llama.tokenizer.decode(train[0]["input_ids"][0]) and "alpha" not in llama.tokenizer.decode(
        test[0]["input_ids"][0]
    )


def test_a_huge_context_is_not_a_length(llama):
    tokenizer = copy.deepcopy(llama.tokenizer)
    tokenizer.model_max_length = 131_072
    train, test = get_wikitext2_unstructured(tokenizer, n_samples=2, task="pydocs", batch_size=2)
    assert train[0]["input_ids"].shape == (2, 2048) and test[0]["input_ids"].shape[1] == 2048


def test_text_is_needed(llama):
    with pytest.raises(UsageError, match="sentiment.*is classification"):
        get_wikitext2_unstructured(llama.tokenizer, task="sentiment")
    with pytest.raises(UsageError, match="sentiment.*is classification"):
        get_wikitext2_unstructured(llama.tokenizer, task="pydocs", calibration="sentiment")


# --- rows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(PRUNING_FUNCTIONS))
def test_every_row_starts_from_the_dense_model(name):
    up, down = (
        execute_benchmark(SHORT, name, ratios=ratios, progress=False) for ratios in ((0.0, 0.25, 0.5), (0.5, 0.0, 0.25))
    )
    assert [row["ratio"] for row in up] == [0.0, 0.25, 0.5]
    used = {"magnitude_pruning": "magnitude", "wanda_pruning": "wanda", "structured_pruning": "activation-norm"}[name]
    assert [row["method"] for row in up] == ["dense", used, used]
    for row in up:
        twin = next(other for other in down if other["ratio"] == row["ratio"])
        for key in ("achieved", "perplexity", "kl", "nonzero", "macs", "texts"):
            assert row[key] == twin[key], key
        assert (
            abs(row["achieved"] - row["ratio"] * (1 if name != "structured_pruning" else 0.75)) < 0.02
        )  # three quarters of the weights belong to neurons
        assert row["flops"] == 2 * row["macs"] > 0
    assert (
        up[0]["perplexity"] < up[1]["perplexity"] < up[2]["perplexity"] and up[0]["kl"] == 0 < up[1]["kl"] < up[2]["kl"]
    )


def test_sizes_and_work_are_counted(llama):
    zeros, smaller = (
        execute_benchmark(SHORT, name, ratios=(0.0, 0.5), progress=False)
        for name in ("wanda_pruning", "structured_pruning")
    )
    total = sum(p.numel() for p in llama.parameters())
    for rows in (zeros, smaller):
        assert rows[0]["parameters"] == total and rows[0]["bytes_dense"] == 4 * total
    assert (
        zeros[1]["parameters"] == total
        and zeros[1]["macs"] == zeros[0]["macs"]
        and zeros[1]["bytes_sparse"] < zeros[0]["bytes_sparse"] == zeros[0]["bytes_dense"]
    )
    assert zeros[1]["bytes_sparse"] > 4 * zeros[1]["nonzero"]  # where they stand has to be stored too
    assert (
        smaller[1]["parameters"] < total
        and smaller[1]["macs"] < smaller[0]["macs"]
        and smaller[1]["bytes_dense"] == 4 * smaller[1]["parameters"]
    )
    assert zeros[1]["latency_s"] is None and smaller[1]["latency_s"] > 0 and smaller[1]["decode_tokens_per_second"] > 0


def test_methods_prune_the_same_layers(llama):
    train, _ = get_wikitext2_unstructured(llama.tokenizer, n_samples=2, length=32, task="pydocs")
    masks = [
        function(load_model("tiny-llama"), 0.5, train).masks.keep for function in (magnitude_pruning, wanda_pruning)
    ]
    assert masks[0].keys() == masks[1].keys() and not any("embed" in key or "lm_head" in key for key in masks[0])


def test_structured_width_is_a_multiple_and_reloads(llama, tmp_path):
    model = load_model("tiny-llama")
    structured_pruning(model, 0.3, SHORT.loaders(llama)[0], multiple=16)
    assert model.config.intermediate_size % 16 == 0 and model.config.intermediate_size == math.ceil(384 * 0.7 / 16) * 16
    model.save_pretrained(tmp_path)
    assert type(model).from_pretrained(tmp_path).config.intermediate_size == model.config.intermediate_size


def test_n_m_by_option():
    config = ModelConfig(n_samples=4, length=64, max_windows=4, options={"pattern": "2:4"})
    dense, half = execute_benchmark(config, "wanda_pruning", ratios=(0.0, 0.5), progress=False)
    assert (dense["achieved"], half["achieved"]) == (0, 0.5) and dense["kl"] == 0 < half["kl"]
    with pytest.raises(UsageError, match="2:4 has sparsity 0.5, not 0.3"):
        execute_benchmark(config, "wanda_pruning", ratios=(0.3,), progress=False)


@pytest.mark.parametrize("pattern", ["heads", "heads+neurons", "blocks"])
def test_other_units_by_option(pattern):
    row = execute_benchmark(
        ModelConfig(n_samples=4, length=64, max_windows=4, options={"pattern": pattern, "method": "magnitude"}),
        "structured_pruning",
        ratios=(0.5,),
        progress=False,
    )[0]
    assert row["parameters"] < execute_benchmark(SHORT, ratios=(0.0,), progress=False)[0]["parameters"]


@pytest.mark.parametrize("windows", [1, 3, 6])
def test_so_many_windows_as_asked_for(windows, llama, pydocs):
    _, test = ModelConfig(n_samples=1, length=32, max_windows=windows).loaders(llama)
    assert sum(len(b["input_ids"]) for b in test) == windows
    assert agreement(llama, llama, pydocs, windows=windows, length=32)["tokens"] == windows * 31


def test_windows_longer_than_the_model_are_refused(llama):
    with pytest.raises(UsageError, match="this model can read"):
        ModelConfig(length=100_000).loaders(llama)
    small = ARCHITECTURES["opt"](vocab_size=2048)
    small.tokenizer = llama.tokenizer
    assert (
        ModelConfig(n_samples=1).loaders(small)[1][0]["input_ids"].shape[1] == 64
    )  # its context, though the tokenizer would read more


def test_a_checkpoint_cannot_choose_how_it_writes(llama):
    other = copy.deepcopy(llama)
    other.generation_config.repetition_penalty, other.generation_config.use_cache = 3.0, False
    seen = []
    handle = other.model.layers[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[1]))
    assert continuations(other, new_tokens=8) == continuations(llama, new_tokens=8)
    handle.remove()
    assert seen[1:8] == [1] * 7  # with a cache, each step reads one token


def test_a_broken_model_gives_no_row(llama):
    broken = copy.deepcopy(llama)
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(Exception, match="NaN"):
        perplexity_of(broken, SHORT.loaders(llama)[1])
    with pytest.raises(Exception, match="NaN"):
        agreement(broken, llama, load_task("pydocs"), windows=1, length=32)


def test_published_values_say_where_they_are_not_comparable():
    row = dict(
        model="facebook/opt-125m",
        task="wikitext2",
        pattern="unstructured",
        sparsity=0.5,
        method="magnitude",
        value=200.0,
        dense_value=27.7,
        calibration_task="c4",
        n_calibration=128,
        recovery="none",
        scope="blocks",
        rounds=1,
        allocation="layer",
        options=None,
        protocol_parts={"length": 2048},
    )
    assert set(beside_published([row]).warning) == {""}
    other = beside_published([row, row | dict(n_calibration=64)])
    assert (
        other.set_index("method").warning["dense"] == ""
        and "n_calibration 128, 64 instead of 128" in other.set_index("method").warning["magnitude"]
    )
    for foreign in (
        dict(recovery="fine-tune"),
        dict(allocation="global"),
        dict(rounds=3),
        dict(options={"damping": 0.1}),
    ):
        assert list(beside_published([row | foreign]).method) == ["dense"]


def test_energy_is_an_estimate_and_says_so():
    pytest.importorskip("codecarbon")
    row = execute_benchmark(SHORT, ratios=(0.0,), progress=False)[0]
    assert (
        row["energy_kwh"] > 0
        and row["co2_kg"] > 0
        and row["assumptions"].startswith("estimate by CodeCarbon")
        and row["assumptions"].endswith("energy mix of USA")
        and row["energy_kwh"] == pytest.approx(row["energy_cpu_kwh"] + row["energy_gpu_kwh"] + row["energy_ram_kwh"])
    )
    with pytest.raises(UsageError, match="no country code"):
        execute_benchmark(ModelConfig(**{**SHORT.__dict__, "country": "France"}), ratios=(0.0,), progress=False)
    france = execute_benchmark(ModelConfig(**{**SHORT.__dict__, "country": "FRA"}), ratios=(0.0,), progress=False)[0]
    assert france["co2_kg"] / france["energy_kwh"] != pytest.approx(
        row["co2_kg"] / row["energy_kwh"], rel=0.05
    )  # no constant of ours


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: execute_benchmark(SHORT, "wonda_pruning"), "unknown pruning function"),
        (lambda: execute_benchmark(SHORT, ratios=(0.1, 50)), "fraction in"),
        (lambda: global_evaluation(SHORT, 1.0, [], []), "fraction in"),
        (lambda: execute_benchmark(ModelConfig(model="no-such-model"), progress=False), "no-such-model"),
    ],
)
def test_bad_calls(call, message):
    with pytest.raises(Exception, match=message) as error:
        call()
    assert type(error.value).__name__ in ("UsageError", "RunError") and "\n" not in str(error.value)


# --- agreement -----------------------------------------------------------------------------------------------------


def test_divergence_by_loops():
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 7, generator=random), torch.randn(5, 7, generator=random)
    far, same = divergence(a, b)
    for i in range(5):
        p, q = (np.exp(x[i].double().numpy()) / np.exp(x[i].double().numpy()).sum() for x in (a, b))
        assert far[i].item() == pytest.approx((p * np.log(p / q)).sum(), rel=1e-6) and bool(same[i]) == (
            p.argmax() == q.argmax()
        )


def test_agreement_counts_predicted_tokens_only(llama, pydocs):
    other = copy.deepcopy(llama)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    four, one = (
        agreement_on(other, llama, pydocs.batches("test", llama.tokenizer, size, 32, limit=8)) for size in (4, 1)
    )
    assert (
        four["tokens"] == one["tokens"] == agreement(other, llama, pydocs, windows=8, length=32)["tokens"] == 8 * 31
        and four["kl"] == pytest.approx(one["kl"], rel=1e-4)
        and four["kl"] > 0
        and four["top1_agreement"] == one["top1_agreement"] < 1
    )
    itself = agreement(llama, llama, pydocs, windows=8, length=32)
    assert abs(itself["kl"]) < 1e-9 and itself["top1_agreement"] == 1


def test_agreement_refuses(llama, pydocs):
    with pytest.raises(UsageError, match="vocabularies|made from"):
        agreement(ARCHITECTURES["llama"](vocab_size=2048 + 64), llama, pydocs, windows=1, length=16)
    with pytest.raises(UsageError, match="language-modelling"):
        agreement(llama, llama, load_task("sentiment"))


# --- texts ---------------------------------------------------------------------------------------------------------


def test_continuations_are_greedy_and_repeatable(llama):
    first, again = continuations(llama, new_tokens=8), continuations(llama, new_tokens=8)
    assert first == again and all(0 < len(one["ids"]) <= 8 for one in first)
    ids = list(first[0]["prompt"])
    for token in first[0]["ids"]:
        with torch.no_grad():
            assert llama(torch.tensor([ids])).logits[0, -1].argmax().item() == token
        ids.append(token)


def test_likelihood_is_of_the_continuation_alone(llama):
    written = continuations(llama, ("Return the number of",), new_tokens=5)
    losses, ids = [], list(written[0]["prompt"])
    for token in written[0]["ids"]:
        with torch.no_grad():
            losses.append(-llama(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)[token].item())
        ids.append(token)
    assert likelihood(llama, written) == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-4)


def test_variety():
    assert (
        distinct([[1, 1, 1, 1]], 1) == 0.25
        and repetition([[1, 1, 1, 1, 1, 1]], 4) == pytest.approx(2 / 3)
        and repetition([[1, 2, 3, 4, 5]], 4) == 0
    )
    assert math.isnan(repetition([[1, 2]], 4)) and math.isnan(distinct([], 1))


def test_text_quality_has_the_texts(llama):
    found = text_quality(llama, llama, new_tokens=6)
    assert (
        len(found["texts"]) == 4
        and all(isinstance(text, str) for text in found["texts"])
        and found["dense_perplexity"] > 1
    )


def test_speed_of_writing(llama):
    found = writing_speed(llama, prompt=16, new_tokens=4, rounds=2)
    for phase in found.values():
        assert phase["seconds"] > 0 and phase["tokens_per_second"] > 0 and phase["iqr"] >= 0
    for bad in (dict(new_tokens=1), dict(prompt=100_000)):
        with pytest.raises(UsageError):
            writing_speed(llama, **bad)


def test_the_default_for_units_is_a_good_one_and_the_old_one_says_what_it_is(llama):
    train, _ = SHORT.loaders(llama)
    assert structured_pruning(load_model("tiny-llama"), 0.25, train).method == "activation-norm"
    with pytest.warns(UserWarning, match="worse than random"):
        assert structured_pruning(load_model("tiny-llama"), 0.25, method="weight-range").method == "weight-range"
    model = load_model("tiny-llama")
    with pytest.raises(UsageError, match="give trainloader, or method='weight-range'"):
        structured_pruning(model, 0.25)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), llama.parameters(), strict=True))


# --- pictures ------------------------------------------------------------------------------------------------------


def drawn(figure, title):
    "Method → {ratio in percent: value} of one panel."
    axis = next(axis for axis in figure.axes if axis.get_title(loc="left") == title)
    lines = {container.get_label(): container.lines[0].get_xydata() for container in axis.containers}
    return {name: {round(x): y for x, y in points} for name, points in lines.items()}


def measured_row(function, ratio):
    "What `execute_benchmark` gives, with numbers of a hand."
    smaller = ratio if function == "structured_pruning" else 0
    timed = smaller or not ratio
    return {
        "model": "m",
        "task": "t",
        "pruning_function": function,
        "ratio": ratio,
        "perplexity": 30 + 100 * ratio,
        "bytes_dense": 4e6 * (1 - smaller),
        "bytes_sparse": 5e6 * (1 - ratio),
        "flops": 2e9 * (1 - smaller),
        "latency_s": 0.02 * (1 - smaller) if timed else None,
        "latency_iqr_s": 0.001 if timed else None,
        "dense_latency_s": 0.02 if timed else None,
        "co2_kg": 1e-6,
    }


def test_the_picture_shows_what_the_rows_hold():
    rows = [measured_row(f"{name}_pruning", ratio) for name in ("wanda", "structured") for ratio in (0.5, 0.0)]
    figure = plot_benchmark(rows)
    for row in rows:
        name, at = row["pruning_function"].removesuffix("_pruning"), round(100 * row["ratio"])
        assert drawn(figure, "Quality")[name][at] == row["perplexity"]
        assert drawn(figure, "Size")[name][at] == min(row["bytes_dense"], row["bytes_sparse"]) / 1e6
        assert drawn(figure, "Work")[name][at] == row["flops"] / 1e9
        assert drawn(figure, "CO₂")[name].get(at) == (1e6 * row["co2_kg"] if "co2_kg" in row else None)
    assert list(drawn(figure, "Time")["wanda"]) == [0]  # zeros make nothing faster
    assert list(drawn(figure, "Time")["structured"]) == [0, 50]
    without = plot_benchmark([{key: value for key, value in row.items() if key != "co2_kg"} for row in rows])
    assert "not measured" in [text.get_text() for axis in without.axes for text in axis.texts]
    for bad, says in (
        ([], "no rows"),
        ([*rows, rows[0] | {"task": "c4", "ratio": 0.1}], "several models or tasks"),
        ([*rows, rows[0]], "twice"),
    ):
        with pytest.raises(UsageError, match=says):
            plot_benchmark(bad)
