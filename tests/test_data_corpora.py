"The bars of the embedded corpora and models: what the package promises to bring along."

import math
import os
import random
from pathlib import Path

import pytest
import torch

import pruneresearch
from pruneresearch.basics.fingerprints import fingerprint
from pruneresearch.data import corpora
from pruneresearch.data.tasks import load_task
from pruneresearch.model.calls import forward
from pruneresearch.model.loading import load_model
from pruneresearch.model.losses import example_losses
from pruneresearch.training.recovery import fine_tune, settings_of

EMBEDDED = Path(pruneresearch.__file__).parent / "embedded"
MAKERS = {"sentiment": (corpora.sentiment_examples, 0.65), "paraphrase": (corpora.paraphrase_examples, 0.75)}


def texts(row):
    return tuple(value for name, value in row.items() if name != "label")


def accuracy(model, task):
    "Share of the test examples that a model gets right, written without the package's metrics."
    right = []
    with torch.no_grad():
        for batch in task.batches("test", getattr(model, "tokenizer", None), batch_size=100):
            output = forward(model, batch)
            right += (getattr(output, "logits", output).argmax(-1) == batch["labels"]).tolist()
    return sum(right) / len(right)


# ---- the grammars


@pytest.mark.parametrize("name", MAKERS)
def test_no_duplicates_balanced_and_reproducible(name):
    make, _ = MAKERS[name]
    rows = make(2000, seed=5)
    assert len({texts(row) for row in rows}) == 2000
    assert 0.48 <= sum(row["label"] for row in rows) / 2000 <= 0.52
    assert make(2000, seed=5) == rows and make(2000, seed=6) != rows


@pytest.mark.parametrize(
    "make, expected",
    [
        (corpora.sentiment_examples, "79798a0b016076fe"),
        (corpora.paraphrase_examples, "2ea246502636ed15"),
        (corpora.pretraining_sentences, "021e024a2f7d38e6"),
    ],
)
def test_same_sentences_on_every_platform(make, expected):
    "A change of the grammar changes these; the embedded models must then be trained again."
    assert fingerprint(make(200, 1)) == expected


@pytest.mark.parametrize("name", MAKERS)
def test_samples_hardly_overlap(name):
    make, _ = MAKERS[name]
    one, two = ({texts(row) for row in make(10_000, seed)} for seed in (1, 2))
    assert len(one & two) < 200


@pytest.mark.parametrize("name", MAKERS)
def test_words_alone_say_nothing(name):
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    make, limit = MAKERS[name]
    train, test = make(8000, 1), make(2000, 2)
    counter = CountVectorizer(token_pattern=r"\w+").fit(text for row in train for text in texts(row))

    def counts(rows):
        return [counter.transform(column) for column in zip(*map(texts, rows), strict=True)]

    def labels(rows):
        return [row["label"] for row in rows]

    for join in (hstack, sum):
        model = LogisticRegression(max_iter=1000).fit(join(counts(train)), labels(train))
        assert model.score(join(counts(test)), labels(test)) <= limit


GOOD, BAD = (tuple(word for pair in corpora.QUALITIES for word in pair[side]) for side in (0, 1))


def verdict(sentence):
    "A reader of its own for the reviews: decides by rule, from the surface of the sentence."
    text = sentence.rstrip(".")
    for opening in corpora.OPENINGS:
        text = text.removeprefix(opening + " ")

    def polarity(part):
        words = part.replace(",", "").split()
        likes, dislikes = corpora.LIKES["like"], corpora.LIKES["dislike"]
        praise = any(w in GOOD or w in likes or w in map(corpora.past, likes) for w in words)
        blame = any(w in BAD or w in dislikes or w in map(corpora.past, dislikes) for w in words)
        assert praise != blame, part
        turns = [
            any(phrase in f" {part} " for phrase in map(" {} ".format, phrases))
            for phrases in (corpora.NEGATIONS, corpora.DENIALS)
        ]
        return praise ^ turns[0] ^ turns[1]

    for joint in ("; however, ", ", but ", ", yet "):
        if joint in text:
            return polarity(text.split(joint)[1])
    for concession in (
        "although ",
        "even though ",
        "despite ",
        "in spite of ",
        "notwithstanding ",
        "while admittedly ",
    ):
        if text.startswith(concession):
            return polarity(text.split(", ", 1)[1])
        if f", {concession}" in text:
            return polarity(text.split(f", {concession}")[0])
    if text.startswith("while "):
        return polarity(text.split(", ", 1)[1])
    for joint in ("; ", ", while at the same time ", ", and ", " and "):
        if joint in text:
            return polarity(
                next(part for part in text.split(joint) if any(f" {adverb} " in part for adverb in corpora.STRONG))
            )
    raise AssertionError(f"no rule for {sentence!r}")


def test_labels_of_reviews_follow_from_the_text():
    for row in corpora.sentiment_examples(3000, seed=7):
        assert verdict(row["sentence"]) == (row["label"] == 1), row


def statement(sentence):
    "What a sentence of the paraphrase task states, read off its surface."
    meaning = {
        word: (table, group, side)
        for table in (corpora.QUALITIES, corpora.DEEDS)
        for group, pair in enumerate(table)
        for side in (0, 1)
        for word in pair[side]
    }
    deeds = {
        form: meaning[verb]
        for pair in corpora.DEEDS
        for words in pair
        for verb in words
        for form in (verb, corpora.past(verb))
    }
    text, circumstance = sentence.rstrip("."), ""
    for phrase in corpora.CIRCUMSTANCES:
        if phrase in text:
            circumstance, text = phrase, text.replace(phrase, "").strip()
    if not any(word in deeds for word in text.split()):
        facts = frozenset(
            (part.split(" was ")[0], meaning[part.split()[-1]][1:], " not " in part) for part in text.split(" and ")
        )
        return facts, circumstance
    words, negated = text.replace("did not ", "").replace("was not ", "was ").split(), " not " in text
    at = next(i for i, word in enumerate(words) if word in deeds)
    left, right = words[:at], words[at + 1 :]
    agent, patient = (right[1:], left[:-1]) if left[-1] == "was" and right[0] == "by" else (left, right)
    return tuple(agent), deeds[words[at]][1:], tuple(patient), negated, circumstance


def test_labels_of_pairs_follow_from_the_text():
    for row in corpora.paraphrase_examples(3000, seed=7):
        assert (statement(row["sentence1"]) == statement(row["sentence2"])) == (row["label"] == 1), row


def test_pretraining_texts_differ_and_repeat():
    drawn = corpora.pretraining_sentences(500, seed=3)
    assert len(set(drawn)) == 500 and drawn == corpora.pretraining_sentences(500, seed=3)
    assert {type(text) for text in drawn} == {str, tuple}


# ---- the documentation


def test_documents_are_deduplicated_before_a_stable_split():
    documents = corpora.standard_library_documents()
    assert documents == corpora.standard_library_documents()
    assert len({" ".join(text.split()) for text in documents}) == len(documents)
    parts = {
        name: {text for text in documents if corpora.stable_split(text) == name}
        for name in ("train", "selection", "test")
    }
    assert sum(map(len, parts.values())) == len(documents)
    assert 0.77 < len(parts["train"]) / len(documents) < 0.83
    assert sum(map(len, documents)) > 1_500_000


def test_split_looks_at_nothing_but_the_words():
    for text in random.Random(0).sample(corpora.standard_library_documents(), 50):
        assert corpora.stable_split(text) == corpora.stable_split("  " + text.replace("\n", "\r\n\t ") + "\n")


def test_library_is_read_not_run(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "inside.py").write_text('"Not wanted."')
    (tmp_path / "b.py").write_text('"Wanted."\nraise SystemExit')
    (tmp_path / "a.py").write_text("x = 1")
    assert [path.name for path in corpora.source_files(tmp_path)] == ["a.py", "b.py"]
    assert corpora.documentation((tmp_path / "b.py").read_text()) == ["Wanted."]


def test_missing_and_broken_source_files_are_skipped(tmp_path):
    long = "A documentation string that is long enough to count as a document."
    (tmp_path / "good.py").write_text(f'"{long}"')
    (tmp_path / "template.py").write_text("def {name}(:")
    (tmp_path / "old.py").write_bytes(b'"\xe9\xe8"')
    assert corpora._collected([*corpora.source_files(tmp_path), tmp_path / "gone.py"]) == [long]


def test_a_changed_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNERESEARCH_CACHE", str(tmp_path / "cache"))
    first, second = (f"A documentation string, the {word} one, long enough to count." for word in ("first", "second"))
    source = tmp_path / "module.py"
    monkeypatch.setattr(corpora, "source_files", lambda: [source])
    for text, kept in ((first, 1), (first, 1), (second, 2)):
        source.write_text(f'"{text}"')
        os.utime(source, ns=(kept, kept))
        assert corpora.read_library.__wrapped__() == (text,)
        assert len(list((tmp_path / "cache").iterdir())) == kept


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("PRUNERESEARCH_CACHE", str(tmp_path / "file" / "cache"))
    assert corpora.read_library.__wrapped__() == tuple(corpora._collected(corpora.source_files()))


# ---- the models


@pytest.mark.parametrize("name, megabytes", [("tiny-bert", 4), ("tiny-llama", 6), ("mlp", 1)])
def test_size_on_disk(name, megabytes):
    assert sum(path.stat().st_size for path in (EMBEDDED / name).iterdir()) <= megabytes * 1e6
    assert {path.suffix for path in (EMBEDDED / name).iterdir()} == {".json", ".safetensors"}


def test_tiny_llama_is_what_it_says():
    model = load_model("tiny-llama", device="cpu")
    config = model.config
    assert config.model_type == "llama" and model.num_parameters() <= 3_000_000
    assert (config.num_attention_heads, config.num_key_value_heads, config.max_position_embeddings) == (4, 2, 128)
    assert config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight
    text = "def café(x):\n\treturn '≤ 40 \u2713'"
    assert model.tokenizer.decode(model.tokenizer(text).input_ids) == text  # byte level: nothing is lost
    assert set(settings_of(model)) == {"learning_rate", "epochs", "batch_size"} and config.fine_tuning == settings_of(
        model
    )


def test_tiny_llama_perplexity():
    task, model = load_task("pydocs"), load_model("tiny-llama", device="cpu")
    tokens = {
        split: model.tokenizer("\n\n".join(task.splits[split]["text"]), verbose=False, return_tensors="pt").input_ids[0]
        for split in ("train", "test")
    }
    windows = tokens["test"][: len(tokens["test"]) // 128 * 128].view(-1, 128)
    with torch.no_grad():
        losses = torch.cat([example_losses(model, dict(input_ids=ids, labels=ids)) for ids in windows.split(32)])
    counts = torch.bincount(tokens["train"], minlength=len(model.tokenizer)).double() + 1
    unigram = math.exp(-(counts / counts.sum()).log()[windows[:, 1:]].mean())
    assert math.exp(losses.double().mean()) <= 40
    assert unigram > 400


def test_tiny_bert_is_what_it_says():
    model = load_model("tiny-bert", device="cpu")
    config = model.config
    assert config.model_type == "bert" and 2 <= config.num_hidden_layers <= 4 and config.hidden_size <= 128
    assert config.max_position_embeddings == 128 and config.fine_tuning == settings_of(model)
    assert model.tokenizer.unk_token_id not in model.tokenizer("an xylophone costs $7 (new!)").input_ids
    assert model.tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("name, low, high", [("sentiment", 0.95, 0.995), ("paraphrase", 0.92, 1.0)])
def test_tiny_bert_fine_tunes_to_its_bars(name, low, high):
    task = load_task(name)
    model = load_model("tiny-bert", task, seed=0, device="cpu")
    fine_tune(model, task, seed=0)
    assert low <= accuracy(model, task) <= high


def test_mlp_accuracy():
    task, model = load_task("digits"), load_model("mlp", device="cpu")
    assert [tuple(p.shape) for p in model.parameters()] == [(256, 64), (256,), (128, 256), (128,), (10, 128), (10,)]
    assert accuracy(model, task) >= 0.96


def test_a_clone_beside_a_script_does_not_hide_the_package(tmp_path):
    "A clone is called pruneresearch too, and whoever works beside it has that folder first on the path."
    import subprocess
    import sys

    (tmp_path / "pruneresearch" / "pruneresearch").mkdir(parents=True)
    (tmp_path / "script.py").write_text("from pruneresearch import load_model; print(load_model.__module__)")
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "pruneresearch.model.loading\n", done.stderr
