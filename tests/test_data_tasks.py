"Tasks: every layout from tiny files, exact windows, disjoint and seeded calibration, damaged files, no network."

import gzip
import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from hub import cache_data
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.data import glue
from pruneresearch.data import hub as data_hub
from pruneresearch.data.encoding import calibration_rows, pad_rows, tokenizer_hash
from pruneresearch.data.evaluate_metrics import load_metric
from pruneresearch.data.glue import GLUE
from pruneresearch.data.questions import answers, best_span, references
from pruneresearch.data.splits import carve, sentence_splits
from pruneresearch.data.tasks import Task, list_tasks, load_task
from pruneresearch.measure.quality import evaluate_model
from pruneresearch.model.loading import load_model
from pruneresearch.pruning.engine import prune
from pruneresearch.training.recovery import fine_tune

REAL = os.environ.get("PRUNERESEARCH_DATA")
real = pytest.mark.skipif(not REAL, reason="PRUNERESEARCH_DATA names no folder with real data")


@pytest.fixture(autouse=True)
def no_local_data(monkeypatch):
    monkeypatch.delenv("PRUNERESEARCH_DATA", raising=False)


def word_tokenizer(texts, special=True):
    cut = pre_tokenizers.BertPreTokenizer()
    words = sorted({w for text in texts for w, _ in cut.pre_tokenize_str(text)})
    inner = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words])}, unk_token="[UNK]")
    )
    inner.pre_tokenizer = cut
    if special:
        inner.post_processor = processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", model_max_length=512)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


# ---------------------------------------------------------------- GLUE


def lines(*rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


MNLI_TRAIN = (
    "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label"
).split()
MNLI_DEV = MNLI_TRAIN[:-1] + "label2 label3 label4 label5 gold_label".split()
STSB = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
NLI = ("entailment", "neutral", "contradiction")
YES = ("entailment", "not_entailment")


def mnli(columns):
    def table(n):
        return lines(
            columns,
            *[
                [
                    i,
                    1,
                    "1e",
                    "fiction",
                    "p",
                    "p",
                    "p",
                    "p",
                    f"premise {i}",
                    f"hypothesis {i}",
                    NLI[0],
                    *[NLI[0]] * (len(columns) - 12),
                    NLI[i % 3],
                ]
                for i in range(n)
            ],
        )

    return table


LAYOUTS = {  # name → file → function from the number of rows to its content, in the columns of the original
    "sst2": {"SST-2/{}.tsv": lambda n: lines(("sentence", "label"), *[(f'a "film {i} ', i % 2) for i in range(n)])},
    "mrpc": {
        "MRPC/{}.tsv": lambda n: (
            "\ufeff"
            + lines(
                ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                *[(i % 2, 7, 8, f'He said "{i}.', f'"{i}" he said.') for i in range(n)],
            )
        )
    },
    "qqp": {
        "QQP/{}.tsv": lambda n: lines(
            "id qid1 qid2 question1 question2 is_duplicate".split(),
            *[(i, 1, 2, f"Why {i}?", f"How {i}?", i % 2) for i in range(n)],
        )
    },
    "mnli": {"MNLI/train.tsv": mnli(MNLI_TRAIN), "MNLI/dev_matched.tsv": mnli(MNLI_DEV)},
    "mnli_mismatched": {"MNLI/train.tsv": mnli(MNLI_TRAIN), "MNLI/dev_mismatched.tsv": mnli(MNLI_DEV)},
    "qnli": {
        "QNLI/{}.tsv": lambda n: lines(
            "index question sentence label".split(), *[(i, f"Why {i}?", f"Since {i}.", YES[i % 2]) for i in range(n)]
        )
    },
    "stsb": {
        "STS-B/{}.tsv": lambda n: lines(
            STSB, *[(i, "news", "f", 2012, i, "a", "b", f"one {i}", f"two {i}", i / 4) for i in range(n)]
        )
    },
    "cola": {
        "CoLA/{}.tsv": lambda n: lines(*[("gj04", i % 2, "" if i % 2 else "*", f"Sentence {i}.") for i in range(n)])
    },
    "rte": {
        "RTE/{}.tsv": lambda n: lines(
            "index sentence1 sentence2 label".split(), *[(i, f"text {i}", f"claim {i}", YES[i % 2]) for i in range(n)]
        )
    },
}
FIRST = {  # the first reported row, as the hub has it
    "sst2": {"sentence": 'a "film 0 ', "label": 0},
    "mrpc": {"sentence1": 'He said "0.', "sentence2": '"0" he said.', "label": 0},
    "qqp": {"question1": "Why 0?", "question2": "How 0?", "label": 0},
    "mnli": {"premise": "premise 0", "hypothesis": "hypothesis 0", "label": 0},
    "qnli": {"question": "Why 0?", "sentence": "Since 0.", "label": 0},
    "stsb": {"sentence1": "one 0", "sentence2": "two 0", "label": 0.0},
    "cola": {"sentence": "Sentence 0.", "label": 0},
    "rte": {"sentence1": "text 0", "sentence2": "claim 0", "label": 0},
}
FIRST["mnli_mismatched"] = FIRST["mnli"]


def write_glue(root, name, train=40, test=6, change=lambda path: path):
    for pattern, table in LAYOUTS[name].items():
        for part, n in (("train", train), ("dev", test)):
            if "{}" in pattern:
                write(root / change(pattern.format(part)), table(n))
            elif part in pattern:
                write(root / change(pattern), table(n))


@pytest.mark.parametrize("level", ["glue/", "", "GLUE/"])
@pytest.mark.parametrize("name", list(GLUE))
def test_glue_layouts(tmp_path, name, level):
    write_glue(tmp_path / level, name, change=(lambda p: p.lower()) if level == "GLUE/" else lambda p: p)
    task = load_task(f"glue/{name}", data_dir=tmp_path)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 36, "selection": 4, "test": 6}
    assert task.splits["test"][0] == FIRST[name]
    expected = [i / 4 for i in range(6)] if name == "stsb" else [i % len(task.labels) for i in range(6)]
    assert task.splits["test"]["label"][:] == expected
    assert task.inputs == tuple(FIRST[name])[:-1] and (task.kind == "regression") == (name == "stsb")
    assert task.metric == {"cola": "matthews", "stsb": "pearson"}.get(name, "accuracy") == task.metrics[0]


def test_glue_secondary_metrics(tmp_path):
    wanted = {"mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1"), "stsb": ("pearson", "spearman")}
    for name, metrics in wanted.items():
        write_glue(tmp_path, name)
        assert load_task(f"glue/{name}", data_dir=tmp_path).metrics == metrics


def test_data_dir_may_be_the_tasks_own_folder_and_environment_works(tmp_path, monkeypatch):
    write_glue(tmp_path, "sst2")
    direct = load_task("glue/sst2", data_dir=str(tmp_path / "SST-2"))
    monkeypatch.setenv("PRUNERESEARCH_DATA", str(tmp_path))
    assert load_task("glue/sst2").fingerprint() == direct.fingerprint()


def msr(n):
    return "\ufeff" + "".join(
        f'{i % 2}\t1\t2\tHe said "{i}.\tIt\u0085s {i}.\r\n' if i else "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
        for i in range(n + 1)
    )


def test_original_msr_files_and_no_mixture_of_layouts(tmp_path):
    write(tmp_path / "MRPC/msr_paraphrase_train.txt", msr(30))
    write(tmp_path / "MRPC/msr_paraphrase_test.txt", msr(9))
    task = load_task("glue/mrpc", data_dir=tmp_path)
    assert len(task.splits["test"]) == 9 and "msr_paraphrase_test.txt" in task.notes
    assert task.splits["test"][0] == {
        "sentence1": 'He said "1.',
        "sentence2": "It\u0085s 1.",
        "label": 1,
    }  # quotes and rare line ends are text
    write(tmp_path / "MRPC/dev.tsv", LAYOUTS["mrpc"]["MRPC/{}.tsv"](5))
    assert (
        len(load_task("glue/mrpc", data_dir=tmp_path).splits["test"]) == 9
    )  # dev.tsv belongs to train.tsv, which is not there
    write(tmp_path / "MRPC/train.tsv", LAYOUTS["mrpc"]["MRPC/{}.tsv"](25))
    assert len(load_task("glue/mrpc", data_dir=tmp_path).splits["test"]) == 5


def test_qqps_damaged_rows_are_left_out_and_counted(tmp_path):
    write_glue(tmp_path, "qqp")
    file = tmp_path / "QQP/train.tsv"
    file.write_text(file.read_text() + "99\t1\t2\tonly a question?\n" * 3)
    task = load_task("glue/qqp", data_dir=tmp_path)
    assert len(task.splits["train"]) + len(task.splits["selection"]) == 40 and "3 damaged rows" in task.notes
    file.write_text(file.read_text() + "99\t1\t2\tonly a question?\n" * 8)
    with pytest.raises(RunError, match="line 52: 4 fields where 6"):
        load_task("glue/qqp", data_dir=tmp_path)


DAMAGE = [  # task, file, content, what the message must contain
    ("glue/sst2", "SST-2/dev.tsv", "", ["dev.tsv", "empty"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\tlabel\n", ["dev.tsv", "no rows"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\tgrade\na\t1\n", ["dev.tsv", "line 1", "'label'", "'grade'"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\na\n", ["dev.tsv", "line 1", "'label'"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\tlabel\na\t1\nb\n", ["dev.tsv", "line 3", "1 fields where 2"]),
    ("glue/sst2", "SST-2/train.tsv", "sentence\tlabel\na\t1\nb\t0\t0\n", ["train.tsv", "line 3", "3 fields"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\tlabel\na\t1\nb\t2\n", ["dev.tsv", "line 3", "'2'", "negative"]),
    ("glue/sst2", "SST-2/dev.tsv", "sentence\tlabel\na\t\n", ["dev.tsv", "line 2", "label ''"]),
    (
        "glue/rte",
        "RTE/dev.tsv",
        "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
        ["line 2", "'maybe'", "not_entailment"],
    ),
    ("glue/stsb", "STS-B/dev.tsv", lines(STSB, [0, *"abcdefgh", "high"]), ["line 2", "'high'", "not a number"]),
    ("glue/stsb", "STS-B/dev.tsv", lines(STSB, [0, *"abcdefgh", "nan"]), ["line 2", "not a number"]),
    ("glue/cola", "CoLA/dev.tsv", "a sentence alone\n", ["line 1", "1 fields where 4"]),
    ("glue/sst2", "SST-2/dev.tsv", None, ["SST-2", "train.tsv with dev.tsv"]),
    ("squad", "squad/dev-v1.1.json", '{"data": [\n{"title": "a",\n', ["dev-v1.1.json", "line 3", "not valid JSON"]),
    ("squad", "squad/dev-v1.1.json", "", ["dev-v1.1.json", "not valid JSON"]),
    ("squad", "squad/dev-v1.1.json", "[1, 2]", ["dev-v1.1.json", "SQuAD's format"]),
    ("squad", "squad/dev-v1.1.json", '{"data": []}', ["dev-v1.1.json", "no questions"]),
    (
        "squad",
        "squad/dev-v1.1.json",
        '{"data": [{"title": "a", "paragraphs": [{"context": "c", "qas": [{"id": "1", "question": "q"}]}]}]}',
        ["article 1", "answers"],
    ),
    (
        "squad",
        "squad/dev-v1.1.json",
        '{"data": [{"paragraphs": [{"context": "c", "qas": [{"id": "7", "question": "q", '
        '"answers": [{"text": "c", "answer_start": 5}]}]}]}]}',
        ["'7'", "outside its context"],
    ),
    ("wikitext2", "wikitext-2/test.txt", "", ["test.txt", "empty"]),
    ("wikitext2", "wikitext-2/test.txt", None, ["wikitext-2", "valid.txt and test.txt"]),
    ("c4", "c4/c4-validation.json", '{"text": "a"}\n{"text"\n', ["c4-validation.json", "line 2", "not valid JSON"]),
    ("c4", "c4/c4-validation.json", '{"url": "a"}\n', ["c4-validation.json", "line 1", "'text'"]),
]


def write_squad(path, articles, answerable=True, version=1.1, each=3):
    def qa(i, j):
        return {
            "id": f"{path.stem}-{i}-{j}",
            "question": f"Which number is in place {j} ?",
            "is_impossible": not (answerable or j),
            "answers": [{"text": f"n{i}x{j}", "answer_start": 7 + 6 * j}] if answerable or j else [],
        }

    body = [
        {
            "title": f"{path.stem} {i}",
            "paragraphs": [
                {
                    "context": f"Title  {' '.join(f'n{i}x{j} .'.ljust(5) for j in range(each))}",
                    "qas": [qa(i, j) for j in range(each)],
                }
            ],
        }
        for i in range(articles)
    ]
    for article in body:  # the answers' places are looked up, so that the file is right by construction
        for paragraph in article["paragraphs"]:
            for q in paragraph["qas"]:
                for a in q["answers"]:
                    a["answer_start"] = paragraph["context"].index(a["text"])
    return write(path, json.dumps({"version": str(version), "data": body}))


def write_all(root):
    for name in GLUE:
        write_glue(root, name)
    for part in ("train", "dev"):
        write_squad(root / f"squad/{part}-v1.1.json", 12)
    for part in ("train", "valid", "test"):
        write(root / f"wikitext-2/{part}.txt", " \n = A = \n words . \n")
    for part in ("train", "validation"):
        write(root / f"c4/c4-{part}.json", "".join(json.dumps({"text": f"{part} {i}"}) + "\n" for i in range(30)))


@pytest.mark.parametrize("name, file, content, parts", DAMAGE)
def test_damaged_files_are_named(tmp_path, name, file, content, parts):
    write_all(tmp_path)
    load_task(name, data_dir=tmp_path)  # fine before
    if content is None:
        (tmp_path / file).unlink()
    else:
        write(tmp_path / file, content)
    if name == "wikitext2" and content is None:
        (tmp_path / "wikitext-2/train.txt").unlink()
    with pytest.raises(RunError) as caught:
        load_task(name, data_dir=tmp_path)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert message.endswith(".") and "\n" not in message


def test_bytes_that_are_not_text(tmp_path):
    write_glue(tmp_path, "sst2")
    (tmp_path / "SST-2/dev.tsv").write_bytes(b"sentence\tlabel\nfine\t1\nbad \xff\t0\n")
    with pytest.raises(RunError, match="dev.tsv', line 3: not UTF-8"):
        load_task("glue/sst2", data_dir=tmp_path)


def test_cut_gzip(tmp_path):
    whole = gzip.compress("".join(json.dumps({"text": f"{random.random()}"}) + "\n" for i in range(5000)).encode())
    for part in ("train", "validation"):
        (tmp_path / f"c4-{part}.json.gz").write_bytes(whole)
    assert len(load_task("c4", data_dir=tmp_path).splits["test"]) == 1100
    (tmp_path / "c4-train.json.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="c4-train.json.gz"):
        load_task("c4", data_dir=tmp_path)


# ---------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def rivers(tmp_path_factory):
    "A version 2 task whose contexts need several windows."
    path = tmp_path_factory.mktemp("qa") / "single.json"
    write_squad(path, 60, answerable=False, version=2.0, each=20)
    task = load_task("squad_v2", data_dir=path)
    return task, word_tokenizer(
        [
            *task.splits["train"]["context"],
            *task.splits["selection"]["context"],
            *task.splits["test"]["context"],
            *task.splits["train"]["question"],
        ]
    )


def test_single_file_is_split_by_article(rivers):
    titles = [set(rows["title"]) for rows in rivers[0].splits.values()]
    assert all(titles) and not titles[0] & titles[1] and not titles[0] & titles[2] and not titles[1] & titles[2]
    assert len(set.union(*titles)) == 60 and "split by article" in rivers[0].notes


def test_official_pair_and_selection_by_article(tmp_path):
    write_squad(tmp_path / "squad/train-v1.1.json", 40)
    write_squad(tmp_path / "squad/dev-v1.1.json", 5)
    task = load_task("squad", data_dir=tmp_path)
    assert (len(task.splits["train"]), len(task.splits["selection"]), len(task.splits["test"])) == (108, 12, 15)
    assert not set(task.splits["train"]["title"]) & set(task.splits["selection"]["title"])
    assert task.metrics == ("squad",) and task.metric == "f1"


@pytest.mark.parametrize("name, answerable, hint", [("squad", False, "squad_v2"), ("squad_v2", True, "'squad'")])
def test_wrong_version_is_refused(tmp_path, name, answerable, hint):
    with pytest.raises(RunError, match=hint):
        load_task(name, data_dir=write_squad(tmp_path / "x.json", 20, answerable))


def test_features_point_at_the_answer_and_cover_the_context(rivers):
    task, tokenizer = rivers
    features, rows = task.encode("test", tokenizer, length=36), {row["id"]: row for row in task.splits["test"]}
    seen, hits = {}, {}
    for f in features:
        row = rows[f["example"]]
        assert len(f["input_ids"]) <= 36
        seen.setdefault(row["id"], set()).update(tuple(o) for o in f["offsets"] if o[0] >= 0)
        if f["start_positions"]:
            text = row["context"][f["offsets"][f["start_positions"]][0] : f["offsets"][f["end_positions"]][1]]
            assert text == row["answers"]["text"][0]
            hits[row["id"]] = True
    assert len(features) > len(rows)
    for key, row in rows.items():
        assert (key in hits) == bool(row["answers"]["text"])
        places = [o for _, o in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(row["context"])]
        assert seen[key] == set(places)


def test_perfect_logits_are_perfect_and_silent_ones_silent(rivers):
    task, tokenizer = rivers
    features = task.encode("test", tokenizer, length=36)
    perfect = [
        [np.eye(40)[f[side]] * 9 for f in features] for side in ("start_positions", "end_positions")
    ]  # four entries of padding
    result = load_metric("squad_v2").compute(
        predictions=answers(task, features, *perfect), references=references(task, features)
    )
    assert result["exact_match"] == result["f1"] == result["no_answer_accuracy"] == 1
    null = [np.eye(40)[0] * 9] * len(features)
    assert all(a["prediction_text"] == "" for a in answers(task, features, null, null))
    assert all(
        a["prediction_text"] for a in answers(task, features, null, null, null_threshold=19.0)
    )  # 18 is not more than the threshold


def test_best_span_against_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        n = int(rng.integers(3, 15))
        start, end = rng.normal(size=(2, n))
        offsets = [(-1, -1)] + [(2 * i, 2 * i + 1) for i in range(n - 1)]
        longest = int(rng.integers(1, 6))
        every = [
            (start[i] + end[j], 2 * (i - 1), 2 * (j - 1) + 1)
            for i in range(1, n)
            for j in range(i, min(n, i + longest))
        ]
        assert best_span(start, end, offsets, n, longest) == pytest.approx(max(every))


def test_best_over_windows_counts_and_version_1_always_answers(rivers):
    task, tokenizer = rivers
    both = task.encode("test", tokenizer, length=36)
    key = both[0]["example"]
    features = both.select([i for i, f in enumerate(both) if f["example"] == key])
    logits = np.zeros((2, len(features), 36))
    target = next(i for i, o in enumerate(features[1]["offsets"]) if o[0] >= 0)
    logits[:, 0, 0] = 7  # the first window says: nothing here
    logits[:, 1, target] = 5  # the second one: this token
    context = next(row["context"] for row in task.splits["test"] if row["id"] == key)
    a, b = features[1]["offsets"][target]
    assert answers(task, features, *logits) == [{"id": key, "prediction_text": context[a:b]}]
    logits[:, 1:, 0] = 6  # now all windows say: nothing here
    assert answers(task, features, *logits)[0]["prediction_text"] == ""
    one = Task("one", "question-answering", task.splits, task.inputs, metrics=("squad",), metric="f1")
    assert answers(one, features, *logits)[0]["prediction_text"] == context[a:b]


def test_long_question_says_which_length_works(rivers):
    task, tokenizer = rivers
    with pytest.raises(UsageError, match="at least (\\d+)") as caught:
        task.encode("test", tokenizer, length=12)
    enough = int(str(caught.value).split("at least ")[1].rstrip("."))
    assert len(task.encode("test", tokenizer, length=enough))
    with pytest.raises(UsageError):
        task.encode("test", tokenizer, length=enough - 1)


# ---------------------------------------------------------------- text

WIKI = " \n = Title = \n \n First , line @-@ one . \n\n  \n = = Part = = \n Last \u2028 line . \n"


def test_wikitext_rows_are_the_hubs(tmp_path):
    for part in ("train", "valid", "test"):
        write(tmp_path / f"wikitext-2/wiki.{part}.tokens", WIKI)
    task = load_task("wikitext2", data_dir=tmp_path)
    assert task.splits["test"]["text"][:] == [
        "",
        " = Title = \n",
        "",
        " First , line @-@ one . \n",
        "",
        "",
        " = = Part = = \n",
        " Last \u2028 line . \n",
    ]
    assert task.join == "\n\n" and task.metric == "perplexity"
    assert "\n\n".join(task.splits["test"]["text"]).startswith("\n\n = Title = \n\n\n\n\n First")


def test_wikitext_without_training_file_says_so(tmp_path):
    articles = "".join(f" = Article {i} = \n \n Text {i} . \n \n" for i in range(30))
    write(tmp_path / "wikitext-2/valid.txt", articles)
    write(tmp_path / "wikitext-2/test.txt", WIKI.replace("First", "<unk>"))
    task = load_task("wikitext2", data_dir=tmp_path)
    assert "no training file" in task.notes and "<unk>" in task.notes
    rows = [*task.splits["train"]["text"], *task.splits["selection"]["text"]]
    assert "".join(rows) == "".join(line + "\n" if line.strip() else "" for line in articles.split("\n"))
    assert task.splits["selection"]["text"][0].startswith(" = Article 27")


def test_c4_takes_the_first_documents(tmp_path):
    for part, n in (("train.00000-of-01024", 50), ("validation.00000-of-00008", 1500)):
        (tmp_path / f"c4-{part}.json.gz").write_bytes(
            gzip.compress("".join(json.dumps({"text": f"{part} {i}", "url": "u"}) + "\n" for i in range(n)).encode())
        )
    task = load_task("c4", data_dir=tmp_path)
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 45, "selection": 5, "test": 1100}
    assert task.splits["test"]["text"][1099] == "validation.00000-of-00008 1099"


def test_c4_single_file_is_split_by_document(tmp_path):
    path = write(tmp_path / "part.jsonl", "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(200)))
    parts = [set(rows["text"]) for rows in load_task("c4", data_dir=path).splits.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 200 and all(parts)


def test_plain_text_file_and_folder(tmp_path):
    path = write(
        tmp_path / "book.txt",
        "\n\n".join(f"Line one of {i}\nline two" for i in range(100)) + "\n\n\n \n" + "Same paragraph\n\n" * 5,
    )
    task, same = load_task(str(path)), load_task("text", data_dir=tmp_path)
    assert task.name == "book.txt" and task.fingerprint() == same.fingerprint()
    assert sum(len(rows) for rows in task.splits.values()) == 105
    assert sum("Same paragraph" in rows["text"][:] for rows in task.splits.values()) == 1
    assert "Line one of 0\nline two" in {t for rows in task.splits.values() for t in rows["text"]}


def test_text_too_small_to_split(tmp_path):
    with pytest.raises(RunError, match="1 paragraph, too few for three splits"):
        load_task(str(write(tmp_path / "x.txt", "One paragraph.")))


@pytest.fixture(scope="module")
def tale(tmp_path_factory):
    path = write(
        tmp_path_factory.mktemp("text") / "tale.txt",
        "\n\n".join(f"day {i} of the long walk , and {i * i} steps ." for i in range(400)),
    )
    task = load_task(str(path))
    return task, word_tokenizer([t for rows in task.splits.values() for t in rows["text"]], special=False)


@pytest.mark.parametrize("length", [2, 7, 64, 400])
def test_windows_are_exact_and_do_not_overlap(tale, length):
    task, tokenizer = tale
    stream = tokenizer("\n\n".join(task.splits["test"]["text"]))["input_ids"]
    windows = task.encode("test", tokenizer, length=length)
    assert [t for w in windows["input_ids"] for t in w] == stream[: len(stream) // length * length]
    assert all(len(w) == length for w in windows["input_ids"])
    assert windows["labels"][:] == windows["input_ids"][:] and set(windows.column_names) == {
        "input_ids",
        "attention_mask",
        "labels",
    }


def test_text_is_tokenised_once_with_special_tokens_at_its_ends_only(tale):
    task, tokenizer = tale
    special = word_tokenizer([t for rows in task.splits.values() for t in rows["text"]])
    ids = [t for w in task.encode("test", special, length=2)["input_ids"] for t in w]
    assert ids[0] == 1 and ids.count(1) == 1 and ids.count(2) <= 1


def test_calibration_windows_come_from_the_training_text(tale):
    task, tokenizer = tale
    stream = tokenizer("\n\n".join(task.splits["train"]["text"]))["input_ids"]
    batches = task.calibration(tokenizer, n=20, length=50, seed=3, batch_size=8)
    assert [tuple(b["input_ids"].shape) for b in batches] == [(8, 50), (8, 50), (4, 50)]
    starts = []
    for row in torch.cat([b["input_ids"] for b in batches]).tolist():
        starts.append(next(i for i in range(len(stream) - 49) if stream[i : i + 50] == row))
    assert len(set(starts)) > 15
    again, other = (
        torch.cat([b["input_ids"] for b in task.calibration(tokenizer, n=20, length=50, seed=s)]) for s in (3, 4)
    )
    assert torch.equal(again, torch.cat([b["input_ids"] for b in batches])) and not torch.equal(again, other)


@pytest.mark.parametrize(
    "call", [lambda t, k: t.encode("test", k, length=10**6), lambda t, k: t.calibration(k, length=10**6)]
)
def test_window_longer_than_the_text_says_what_fits(tale, call):
    with pytest.raises(UsageError, match="at most (\\d+)") as caught:
        call(*tale)
    fits = int(str(caught.value).split("at most ")[1].rstrip("."))
    assert fits > 100


# ---------------------------------------------------------------- embedded tasks, encoding, batches


@pytest.fixture(scope="module")
def sentiment():
    task = load_task("sentiment")
    return task, word_tokenizer(task.splits["train"]["sentence"])


@pytest.mark.parametrize("name, columns", [("sentiment", ("sentence",)), ("paraphrase", ("sentence1", "sentence2"))])
def test_sentence_tasks_have_exact_disjoint_splits(name, columns):
    task = load_task(name)
    parts = {split: set(zip(*[rows[c] for c in columns], strict=True)) for split, rows in task.splits.items()}
    assert (
        {split: len(rows) for split, rows in task.splits.items()}
        == {split: len(part) for split, part in parts.items()}
        == {"train": 8000, "selection": 1000, "test": 2000}
    )
    assert len(set.union(*parts.values())) == 11_000 and len(task.labels) == 2 and task.inputs == columns


def test_overlaps_are_dropped_and_sizes_still_met():
    def make(n, seed):  # every call begins with the same sentences
        return [{"sentence": f"s{i}", "label": i % 2} for i in range(n)]

    splits = sentence_splits(make)
    assert [len(splits[s]["sentence"]) for s in ("train", "selection", "test")] == [8000, 1000, 2000]
    assert len({t for columns in splits.values() for t in columns["sentence"]}) == 11_000


def test_digits_need_no_tokenizer():
    from sklearn.datasets import load_digits

    task = load_task("digits")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 1293, "selection": 144, "test": 360}
    known = {tuple(x) for x in load_digits().data}
    batch = task.batches("test", batch_size=100)[0]
    assert (
        batch["inputs"].shape == (100, 64)
        and batch["inputs"].dtype == torch.float32
        and batch["labels"].dtype == torch.int64
    )
    assert all(tuple((v * 16).tolist()) in known for v in batch["inputs"])
    counts = np.bincount(task.splits["test"]["label"])
    assert counts.min() >= 34 and task.default_length() == 0
    assert sum(len(b["labels"]) for b in task.calibration(n=20)) == 20


def test_pydocs_splits_are_disjoint():
    task = load_task("pydocs")
    parts = [set(rows["text"]) for rows in task.splits.values()]
    assert all(len(part) > 50 for part in parts) and len(set.union(*parts)) == sum(map(len, parts))
    assert task.kind == "language-modelling" and task.join == "\n\n"


def unpadded(batches):
    "The token ids of every row, without padding."
    pairs = [pair for b in batches for pair in zip(b["input_ids"], b["attention_mask"], strict=True)]
    return [tuple(ids[mask.bool()].tolist()) for ids, mask in pairs]


def test_batches_are_in_order_padded_and_limited(sentiment):
    task, tokenizer = sentiment
    batches = task.batches("test", tokenizer, batch_size=7, limit=20)
    assert [len(b["labels"]) for b in batches] == [7, 7, 6]
    texts = [tokenizer.decode(ids) for ids in unpadded(batches)]
    direct = [tokenizer.decode(tokenizer(s)["input_ids"]) for s in task.splits["test"]["sentence"][:20]]
    assert texts == direct and torch.cat([b["labels"] for b in batches]).tolist() == task.splits["test"]["label"][:20]
    assert all(b["input_ids"].shape[1] == b["attention_mask"].sum(1).max() for b in batches)
    assert all((b["input_ids"][b["attention_mask"] == 0] == tokenizer.pad_token_id).all() for b in batches)
    assert max(len(ids) for ids in task.encode("test", tokenizer, length=9)["input_ids"]) == 9


def test_calibration_is_seeded_from_train_and_disjoint_from_the_rest(sentiment):
    task, tokenizer = sentiment
    parts = {split: set(map(tuple, task.encode(split, tokenizer)["input_ids"])) for split in task.splits}
    drawn = unpadded(task.calibration(tokenizer, n=300, seed=5))
    assert len(set(drawn)) == 300 and set(drawn) <= parts["train"]
    assert not set(drawn) & (parts["test"] | parts["selection"])
    assert drawn == unpadded(task.calibration(tokenizer, n=300, seed=5, batch_size=64))
    assert drawn != unpadded(task.calibration(tokenizer, n=300, seed=6))


def test_question_calibration_shows_the_answers(rivers):
    task, tokenizer = rivers
    rows = calibration_rows(task, tokenizer, n=30, length=36, seed=0)
    chosen = {row["id"]: row for row in task.splits["train"]}
    assert len(rows) == len(set(rows["example"])) == 30
    assert all(
        bool(start) == bool(chosen[key]["answers"]["text"])
        for key, start in zip(rows["example"], rows["start_positions"], strict=True)
    )


def test_regression_labels_are_floats(tmp_path):
    write_glue(tmp_path, "stsb")
    task = load_task("glue/stsb", data_dir=tmp_path)
    batch = task.batches("test", word_tokenizer(task.splits["train"]["sentence1"]), batch_size=6)[0]
    assert batch["labels"].dtype == torch.float32 and batch["labels"].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25]


def test_default_lengths(sentiment, tale, rivers):
    assert sentiment[0].default_length(sentiment[1]) == 128 and sentiment[0].default_length(context=64) == 64
    assert rivers[0].default_length(rivers[1]) == 384
    assert [tale[0].default_length(context=c) for c in (256, 131_072)] == [256, 2048] and tale[
        0
    ].default_length() == 2048
    assert load_task("sentiment", length=17).default_length(context=512) == 17


def test_memory_pickle_and_determinism(sentiment):
    task, tokenizer = sentiment
    first = task.encode("test", tokenizer, length=12)
    assert task.encode("test", tokenizer, length=12) is first and task.encode("test", tokenizer, length=13) is not first
    copy = pickle.loads(pickle.dumps(task))
    assert (
        not copy._memo
        and copy.encode("test", tokenizer, length=12)[:] == first[:]
        and copy.fingerprint() == task.fingerprint()
    )
    assert pickle.loads(pickle.dumps(task.collate(tokenizer))) is not None


def test_fingerprint_depends_on_data_only(tmp_path):
    prints = []
    for folder, seven in (("a", "7"), ("b", "7"), ("c", "8")):
        write(tmp_path / folder / "x.txt", "\n\n".join(f"paragraph {i} {seven}" for i in range(100)))
        prints.append(load_task("text", data_dir=tmp_path / folder).fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_tokenizer_hash_ignores_what_calls_change(sentiment):
    tokenizer = word_tokenizer(["one two three"])
    before = tokenizer_hash(tokenizer)
    tokenizer("one two three", truncation=True, max_length=3, padding="max_length")
    assert tokenizer_hash(tokenizer) == before == tokenizer_hash(word_tokenizer(["three one two"]))
    assert (
        len(
            {
                before,
                tokenizer_hash(word_tokenizer(["one two"])),
                tokenizer_hash(word_tokenizer(["one two three"], special=False)),
                tokenizer_hash(None),
            }
        )
        == 4
    )


def test_carve_keeps_groups_together_and_is_fixed():
    groups = [f"g{i // 3}" for i in range(300)]
    stay, aside = carve(groups)
    assert carve(groups) == (stay, aside) and sorted(stay + aside) == list(range(300)) and len(aside) == 30
    assert not {groups[i] for i in stay} & {groups[i] for i in aside}
    assert len(carve(list(range(100_000)))[1]) == 2000


def test_padding_of_labels_and_tokens():
    batch = pad_rows(
        [
            {"input_ids": [4], "token_type_ids": [1], "labels": [4], "offsets": [[0, 1]]},
            {"input_ids": [5, 6], "token_type_ids": [1, 1], "labels": [5, 6], "offsets": [[0, 1]]},
        ],
        pad_token=3,
    )
    assert {k: v.tolist() for k, v in batch.items()} == {
        "input_ids": [[4, 3], [5, 6]],
        "token_type_ids": [[1, 0], [1, 1]],
        "labels": [[4, -100], [5, 6]],
    }


def test_tokenizer_without_padding_token(tale):
    task, tokenizer = tale

    class Bare:
        pad_token_id, eos_token_id = None, 11

    assert task.collate(Bare())([{"input_ids": [1]}, {"input_ids": [1, 2]}])["input_ids"].tolist() == [[1, 11], [1, 2]]


@pytest.mark.parametrize(
    "call, text",
    [
        (lambda t, k: load_task("glue/sst3"), "did you mean 'glue/sst2'"),
        (lambda t, k: load_task("nowhere.txt"), "'nowhere.txt' does not exist"),
        (lambda t, k: load_task("text"), "folder of .txt files"),
        (lambda t, k: load_task("glue/rte", data_dir="nowhere"), "'nowhere', named by data_dir"),
        (lambda t, k: t.encode("validation", k), "known are selection, test, train"),
        (lambda t, k: t.encode("test"), "tokenizer"),
        (lambda t, k: t.encode("test", k, length=1), "at least 2"),
        (lambda t, k: t.calibration(k, n=0), "at least 1"),
        (lambda t, k: t.calibration(k, n=8001), "8000 training rows"),
        (lambda t, k: t.batches("test", k, batch_size=0), "at least 1"),
    ],
)
def test_usage_errors(sentiment, call, text):
    with pytest.raises(UsageError, match=text):
        call(*sentiment)


def test_environment_folder_that_does_not_exist(monkeypatch):
    monkeypatch.setenv("PRUNERESEARCH_DATA", "nowhere")
    with pytest.raises(UsageError, match="PRUNERESEARCH_DATA"):
        load_task("squad")


def test_list_tasks_is_complete():
    names = {t["name"]: t for t in list_tasks()}
    assert {
        "sentiment",
        "paraphrase",
        "pydocs",
        "digits",
        "squad",
        "squad_v2",
        "wikitext2",
        "c4",
        "text",
        *(f"glue/{n}" for n in GLUE),
    } == set(names)
    assert (
        names["sentiment"]["source"] == "embedded"
        and names["squad"]["metric"] == "f1"
        and names["glue/cola"]["metric"] == "matthews"
    )


# ---------------------------------------------------------------- the hub


def test_hub_and_folder_give_the_same_task(tmp_path, monkeypatch):
    import datasets

    write_glue(tmp_path, "mnli")
    local = load_task("glue/mnli", data_dir=tmp_path)

    def table(n):
        columns = {name: [f"{name} {i}" for i in range(n)] for name in ("premise", "hypothesis")}
        return Dataset.from_dict({**columns, "label": [i % 3 for i in range(n)], "idx": list(range(n))})

    asked = []

    def fake(*arguments, **named):
        asked.append((arguments, named))
        return DatasetDict({"train": table(40), "validation_matched": table(6), "validation_mismatched": table(3)})

    monkeypatch.setattr(datasets, "load_dataset", fake)
    monkeypatch.setattr(data_hub, "hub_answers", lambda: True)
    assert load_task("glue/mnli").fingerprint() == local.fingerprint()
    assert len(load_task("glue/mnli_mismatched").splits["test"]) == 3
    assert [a for a, _ in asked] == [("nyu-mll/glue", "mnli")] * 2


@pytest.mark.parametrize("name", ["glue/sst2", "squad", "wikitext2", "c4"])
def test_without_network_the_message_helps_and_comes_at_once(name, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(data_hub, "hub_answers", lambda: False)
    begin = time.perf_counter()
    with pytest.raises(RunError) as caught:
        load_task(name)
    assert time.perf_counter() - begin < 5
    assert all(
        part in str(caught.value) for part in ("sentiment", "pydocs", "PRUNERESEARCH_DATA", "data_dir")
    ) and "\n" not in str(caught.value)


def test_unreachable_hub_is_noticed_within_seconds(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens at the discard port
    begin = time.perf_counter()
    assert data_hub.hub_answers() is False and time.perf_counter() - begin < 6


def test_reachable_hub_is_noticed(monkeypatch):
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    from huggingface_hub import constants

    class Quiet(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Quiet)
    Thread(target=server.handle_request, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert data_hub.hub_answers() is not constants.HF_HUB_OFFLINE
    server.server_close()


def test_cached_data_still_load_without_network(monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # as without this suite's own setting
    splits = {
        split: {"sentence": [f"s{i}" for i in range(n)], "label": [i % 2 for i in range(n)], "idx": list(range(n))}
        for split, n in (("train", 30), ("validation", 5))
    }
    cache_data(tmp_path / "cache", "nyu-mll/glue", splits, "sst2")
    monkeypatch.setattr(data_hub, "hub_answers", lambda: False)
    task = load_task("glue/sst2")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 27, "selection": 3, "test": 5}
    assert not datasets.config.HF_HUB_OFFLINE  # put back


def test_local_folder_without_the_task_falls_back_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNERESEARCH_DATA", str(tmp_path))
    monkeypatch.setattr(glue, "from_hub", lambda *a, **k: (_ for _ in ()).throw(RunError("hub asked")))
    with pytest.raises(RunError, match="hub asked"):
        load_task("glue/rte")
    with pytest.raises(UsageError, match="glue/RTE/train.tsv"):
        load_task("glue/rte", data_dir=tmp_path)


def test_import_is_light_and_an_embedded_task_needs_little_more():
    "Modules are counted in one fresh process, after the import and after loading and batching an embedded task."
    program = """if True:
        import sys
        heavy = {"datasets", "evaluate", "transformers", "sklearn", "pandas", "scipy", "matplotlib", "huggingface_hub"}
        import pruneresearch.data.tasks as tasks
        print(*sorted(heavy & set(sys.modules)))
        tasks.load_task("sentiment")
        print(*sorted((heavy - {"datasets", "pandas", "huggingface_hub"}) & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["", ""]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("sentiment", ("65674be3d50c641f", "1c4f0bf33b576c95", "a38833fc21d8b31b")),
        ("paraphrase", ("35ee37dcbdbc72ae", "b5dc5c439868102e", "46ead67e1cf83f2e")),
    ],
)
def test_embedded_sentences_are_the_same_as_ever(name, expected):
    splits = load_task(name).splits
    rows = [json.dumps([splits[s][c][:] for c in splits[s].column_names]) for s in ("train", "selection", "test")]
    assert tuple(hashlib.sha256(text.encode()).hexdigest()[:16] for text in rows) == expected


# ---------------------------------------------------------------- real data


@real
@pytest.mark.parametrize("name, train, test", [("glue/sst2", 67349, 872), ("glue/mrpc", 4076, 1725)])
def test_real_glue(name, train, test):
    task = load_task(name, data_dir=REAL)
    sizes = {split: len(rows) for split, rows in task.splits.items()}
    assert sizes["train"] + sizes["selection"] == train and sizes["test"] == test
    share = np.mean(task.splits["test"]["label"])
    assert share == pytest.approx({"glue/sst2": 444 / 872, "glue/mrpc": 1147 / 1725}[name])


@real
def test_real_wikitext():
    task = load_task("wikitext2", data_dir=REAL)
    assert len(task.splits["test"]) == 4358 and task.splits["test"]["text"][1] == " = Robert <unk> = \n"


@real
def test_real_squad_splits_share_no_article():
    task = load_task("squad", data_dir=REAL)
    titles = [set(rows["title"]) for rows in task.splits.values()]
    assert sum(map(len, titles)) == len(set.union(*titles)) and sum(len(rows) for rows in task.splits.values()) == 1190
    for row in task.splits["test"]:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text


# ---------------------------------------------------------------- what a task of one's own may hold


def own_task(kind="classification", inputs=("sentence",), labels=("bad", "good"), **columns):
    rows = Dataset.from_dict({"sentence": ["a film", "a play"], "label": [0, 1], **columns})
    return Task("own", kind, DatasetDict(train=rows, selection=rows, test=rows), inputs, labels, ("accuracy",))


def quiz(**answers):
    columns = {"id": ["1"], "question": ["who ?"], "context": ["a film"]}
    rows = Dataset.from_dict({**columns, "answers": [{"text": ["a"], "answer_start": [0], **answers}]})
    splits = DatasetDict(train=rows, selection=rows, test=rows)
    return Task("quiz", "question-answering", splits, ("question", "context"), metrics=("squad",), metric="f1")


WRONG_ROWS = {
    "classes from one": (own_task(label=[1, 2]), "label 2: the classes are numbered from 0 to 1"),
    "an ignored class": (own_task(label=[0, -100]), "label -100"),
    "text as label": (own_task(label=["bad", "good"]), "label '(bad|good)'"),
    "no label": (own_task(label=[0, None]), "label None"),
    "fractions as classes": (own_task(label=[0.0, 1.0]), "label [01].0: .* as whole numbers"),
    "a target that is no number": (own_task("regression", label=[0.5, float("nan")]), "a label nan: .*finite numbers"),
    "a target that is missing": (own_task("regression", label=[0.5, None]), "a label None|a label nan"),
    "no text": (own_task(sentence=["a film", None]), "'sentence' of task 'own' holds None"),
    "a number as text": (own_task(sentence=[1, 2]), "holds [12] where text is expected"),
    "no such column": (own_task(inputs=("text",)), "needs a column 'text', its rows have"),
    "no text to model": (own_task("language-modelling", sentence=["a", None]), "holds None where text is expected"),
    "no answer": (quiz(text=[None]), "lists 'text' and 'answer_start' of equal length"),
    "an answer without a place": (quiz(answer_start=[]), "lists 'text' and 'answer_start' of equal length"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_cannot_be_read_are_refused(case):
    task, words = WRONG_ROWS[case]
    tokenizer = word_tokenizer(["a film a play who ?"])
    for use in (
        lambda: task.encode("test", tokenizer, 16),
        lambda: task.calibration(tokenizer, n=len(task.splits["train"]), length=16),
    ):
        with pytest.raises(UsageError, match=words):
            use()


def test_labels_beyond_the_classes_are_never_measured_or_trained_on():
    bert = load_model("tiny-bert", load_task("sentiment"), device="cpu")
    task, before = own_task(label=[1, 2]), {name: p.clone() for name, p in bert.state_dict().items()}
    for use in (
        evaluate_model,
        fine_tune,
        lambda model, task: prune(model, task, method="wanda", sparsity=0.5, n_calibration=2),
    ):
        with pytest.raises(UsageError, match="label 2: the classes are numbered from 0 to 1"):
            use(bert, task)
    assert all(torch.equal(p, before[name]) for name, p in bert.state_dict().items())


@pytest.mark.parametrize("name, words", [
    ("x.jsonl", "task c4 with data_dir='x.jsonl'"),
    ("x.JSONL.gz", "task c4 with data_dir"),
    ("x.json", "task squad or squad_v2 with data_dir"),
    ("x.csv", "a Task of its splits"),
    ("x.parquet", "a Task of its splits"),
    ("x.tsv", "glue/sst2 and its like"),
])  # fmt: skip
def test_other_files_are_no_tasks_by_their_path(name, words):
    with pytest.raises(UsageError, match="only a plain text file .*" + words):
        load_task(name)


def test_the_advice_for_json_lines_works(tmp_path):
    texts = [json.dumps({"text": f"document {i}"}) for i in range(200)]
    assert load_task("c4", data_dir=write(tmp_path / "x.jsonl", "\n".join(texts))).splits["train"].num_rows


def test_a_folder_is_no_task(tmp_path):
    with pytest.raises(UsageError, match="is a folder, not a task: .*as data_dir"):
        load_task(str(tmp_path))


def test_a_text_of_lines_is_told_about_blank_lines(tmp_path):
    lines = write(tmp_path / "lines.txt", "\n".join(f"This is sentence {i}." for i in range(500)))
    with pytest.raises(RunError, match="lines.txt has 1 paragraph, .*leave a blank line between two of its documents"):
        load_task(str(lines))


def test_a_gated_data_set_says_what_helps(monkeypatch):
    def refuse(*_, **__):
        raise OSError("Dataset 'meta/secret' is a gated dataset on the Hub.")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(
        RunError, match="accept its licence at https://huggingface.co/datasets/meta/secret, and set HF_"
    ):
        data_hub.from_hub("meta/secret")
