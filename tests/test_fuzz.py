"""Fuzz: a thousand damaged or hostile files.

Each gives one clear sentence or a correct load, soon, with little memory, and leaves everything outside its folder
alone.
"""

import copy
import gzip
import json
import os
import random
import re
import resource
import shutil
import signal
import struct
import sys
from collections import namedtuple
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES
from test_lab_compare import row
from test_recipes_train_masks import squad
from test_shipping_surgery import cuts
from transformers import AutoTokenizer

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.basics.files import read_json, write_json
from pruneresearch.data.tasks import load_task
from pruneresearch.lab.experiment import Config, check, row_id
from pruneresearch.lab.rows import load_rows, save_rows, saved_rows
from pruneresearch.lab.tables import leaderboard
from pruneresearch.model.folders import file_hash, locate_model, quiet
from pruneresearch.model.loading import save_model
from pruneresearch.model.mlp import SimpleMLP
from pruneresearch.pruning.masks import Masks
from pruneresearch.shipping.checkpoints import open_model, save_pruned
from pruneresearch.shipping.surgery import remove

pytestmark = pytest.mark.slow
SECONDS, BYTES = 20, 3 * 2**30  # what one case may take, and how much more memory the process may reserve


# ---- mutations: (random numbers, what it was) → (what it becomes, what was done)


def places(value, path=()):
    "Every (path, value) inside a JSON value."
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(path, value), *(found for key, part in inside for found in places(part, (*path, key)))]


DEEP = "a text that stands for a hundred thousand brackets"
HOSTILE = (
    None,
    True,
    -1,
    0,
    1,
    2.5,
    10**6,
    10**9,
    10**30,
    -(10**18),
    float("nan"),
    float("inf"),
    "",
    "bert",
    "../../bait.json",
    "../bait.safetensors",
    "/bait.json",
    "a\x00b",
    "\ud800 💥 \u202e",
    [],
    {},
    [[]],
    [10**9, 10**9],
    {"a": 1},
    ["../bait.json"],
    DEEP,
)


def json_value(rng, value):
    "One place of a JSON value is replaced, removed, renamed, repeated, exchanged or scaled."
    value = copy.deepcopy(value)
    found = [(path, part) for path, part in places(value) if path]
    if not found:
        return rng.choice(HOSTILE), "replaced as a whole"
    path, part = rng.choice(found)
    holder, key = value, path[-1]
    for step in path[:-1]:
        holder = holder[step]
    what = rng.choice(("replace", "replace", "replace", "remove", "rename", "repeat", "exchange", "scale"))
    if what == "remove" or what == "rename" and isinstance(holder, list):
        del holder[key]
    elif what == "rename":
        holder[rng.choice(("", "../../x", "\u202e", f"{key}x"))] = holder.pop(key)
    elif what == "repeat" and isinstance(part, (list, str)):
        holder[key] = part * rng.choice((2, 100))
    elif what == "exchange":
        holder[key] = copy.deepcopy(rng.choice(found)[1])
    elif what == "scale" and type(part) in (int, float):
        holder[key] = part * rng.choice((-1, 2, 1000)) + rng.choice((0, 1))
    else:
        holder[key] = rng.choice(HOSTILE)
        what = f"replace by {str(holder[key])[:30]!r}"
    return value, f"{what} at {'/'.join(map(str, path))[:80]!r}"


def written(value) -> bytes:
    return json.dumps(value).replace(json.dumps(DEEP), "[" * 100_000 + "]" * 100_000).encode()


def json_text(rng, data):
    value, told = json_value(rng, json.loads(data))
    return written(value), told


def header(rng, data):
    "The header of a safetensors file, or the JSON inside its metadata, with its length made right again."
    (size,) = struct.unpack("<Q", data[:8])
    value = json.loads(data[8 : 8 + size])
    shapes = value.get("__metadata__", {}).get("shapes")
    if shapes and rng.random() < 0.4:
        inner, told = json_text(rng, shapes)
        value["__metadata__"]["shapes"] = inner.decode()
    else:
        value, told = json_value(rng, value)
    text = written(value)
    return struct.pack("<Q", len(text)) + text + data[8 + size :], f"header, {told}"


def raw(rng, data):
    "Bytes are flipped, cut off, doubled, inserted, zeroed; or all of them go."
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 8, 4000)))
    what, made = rng.choice(
        (
            ("flip", data[:a] + bytes(byte ^ (1 << rng.randrange(8)) for byte in data[a:b]) + data[b:]),
            ("cut", data[:a]),
            ("double", data[:b] + data[a:]),
            ("remove", data[:a] + data[b:]),
            ("insert", data[:a] + rng.randbytes(b - a) + data[a:]),
            ("zero", data[:a] + bytes(b - a) + data[b:]),
            ("empty", b""),
        )
    )
    return made, f"{what} at byte {a} of {len(data)}, {b - a} bytes"


def lines(rng, data):
    "One line, as JSON where it is JSON, or one field of a table."
    parts = data.decode().split("\n")
    i = rng.randrange(len(parts))
    if parts[i].startswith("{"):
        made, told = json_text(rng, parts[i])
        parts[i] = made.decode()
    else:
        fields = parts[i].split("\t")
        fields[rng.randrange(len(fields))] = rng.choice(
            ("", "nan", "-1", "9" * 5000, "../../bait.txt", "\x00", "\u2028", "a\tb", "\r", "💥")
        )
        parts[i], told = "\t".join(fields), "field replaced"
    return "\n".join(parts).encode(), f"line {i + 1}, {told}"


def zipped(inner):
    def mutation(rng, data):
        made, told = inner(rng, gzip.decompress(data))
        return gzip.compress(made), f"inside, {told}"

    return mutation


STRUCTURE = {
    ".json": json_text,
    ".safetensors": header,
    ".tsv": lines,
    ".txt": lines,
    ".jsonl": lines,
    ".json.gz": zipped(json_text),
    ".jsonl.gz": zipped(lines),
}  # what knows the format


def mutate(rng, path):
    "Change one file; returns what was done."
    structure = STRUCTURE["".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix]
    made, told = (structure if rng.random() < 0.65 else raw)(rng, path.read_bytes())
    path.write_bytes(made)
    return told


# ---- originals: functions that fill a new folder


def tokenized(name, source, **changes):
    "A small random model with the tokenizer of an embedded one."
    tokenizer = AutoTokenizer.from_pretrained(locate_model(source))
    model = ARCHITECTURES[name](vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, **changes)
    model.tokenizer = tokenizer
    return model


def plain(name, source):
    return lambda folder: save_model(tokenized(name, source), folder / "model")


def sharded(folder):
    save_model(tokenized("llama", "tiny-llama"), folder / "model")
    (folder / "model" / "model.safetensors").unlink()
    with quiet():
        tokenized("llama", "tiny-llama").save_pretrained(folder / "model", max_shard_size="60KB")


def pruned(storage, cut, name="bert"):
    def make(folder):
        model = tokenized(name, f"tiny-{name}")
        save_pruned(
            remove(model, Masks.from_units(model, cuts(model, cut))), folder / "model", storage, certificate=False
        )

    return make


def perceptron(folder):
    save_model(SimpleMLP(8, [6, 4], 3), folder / "model")


def masks(folder):
    Masks({"0.weight": torch.rand(6, 9) > 0.5, "0.bias": torch.rand(6) > 0.5, "2.weight": torch.rand(3, 6) > 0.5}).save(
        folder / "masks.safetensors"
    )


def glue(folder):
    for name, columns in (("SST-2", ("sentence", "label")), ("STS-B", ("sentence1", "sentence2", "score"))):
        (folder / name).mkdir(parents=True)
        for part, n in (("train", 30), ("dev", 6)):
            rows = [(*[f"a film like no. {i}"] * (len(columns) - 1), str(i % 2)) for i in range(n)]
            (folder / name / f"{part}.tsv").write_text("\n".join("\t".join(line) for line in (columns, *rows)))


def questions(folder):
    for name, version in (("squad", "1.1"), ("squad_v2", "2.0")):
        (folder / name).mkdir(parents=True)
        (folder / name / "all.json").write_text(squad(version))


def paragraphs(folder):
    (folder / "own.txt").write_text(
        "\n\n".join(f"Paragraph {i}\nhas two lines, and says {'so ' * (i % 5)}." for i in range(60))
    )


def documents(folder):
    text = (
        "\n".join(
            json.dumps({"text": f"Document {i} says {'so ' * (i % 7)}.", "url": f"https://example.org/{i}"})
            for i in range(60)
        )
        + "\n"
    )
    (folder / "c4").mkdir(parents=True)
    (folder / "c4" / "c4-train.jsonl").write_text(text)
    (folder / "c4" / "c4-validation.jsonl.gz").write_bytes(gzip.compress(text.encode()))


CONTEST = [
    row(
        method,
        seed,
        (16 - i + seed) / 20,
        [1.0] * (16 - i + seed) + [0.0] * (4 + i - seed),
        prune_seconds=1.5,
        pattern="unstructured",
        allocation="layer",
        protocol_parts={"length": 128},
        metrics={},
    )
    for i, method in enumerate(("magnitude", "random", "wanda"))
    for seed in range(2)
]


def loose_rows(folder):
    for one in CONTEST:
        write_json(folder / "rows" / f"{one.id}.json", asdict(one))


CONFIGS = [
    dict(
        model="tiny-bert",
        task="sentiment",
        method="wanda",
        sparsity=0.5,
        pattern="2:4",
        rounds=1,
        seed=3,
        learning_rate=1e-4,
        length=32,
        dense_epochs=0.5,
    ),
    dict(
        model="tiny-bert",
        task="sentiment",
        method="magnitude",
        sparsity=None,
        pattern="heads+neurons",
        shares={"heads": [0.5, 0.25], "neurons": [0, 0.5]},
        recovery="distil",
        alpha=0.3,
        temperature=4.0,
    ),
    dict(
        model="tiny-bert",
        task="sentiment",
        method="gumbel",
        sparsity=0.5,
        pattern="heads",
        allocation="macs",
        recovery="fine-tune",
        options={"num_epochs": 0.5, "freeze": False},
        repair=None,
    ),
]


def configs(folder):
    for i, values in enumerate(CONFIGS):
        write_json(folder / f"{i}.json", values)


# ---- readers: what was loaded, as something that must be equal to what the original gives


def shapes(tensors) -> dict:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def read_model(folder, changed):
    "The shapes of the whole body, and of as much of a head as is there: which head it gets is a model's own affair."
    model = open_model(folder / "model", device="cpu")
    body = getattr(model, "base_model", model)
    return shapes(body.state_dict())


def read_pruned(folder, changed):
    return shapes(open_model(folder / "model", device="cpu").state_dict())


def read_pruned_by_a_forger(folder, changed):
    "Weights that were changed by somebody who then made the hashes right."
    told = read_json(folder / "model" / "pruned.json")
    if changed.suffix == ".safetensors":
        write_json(folder / "model" / "pruned.json", told | {"files": {changed.name: file_hash(changed)}})
    return read_pruned(folder, changed)


def read_masks(folder, changed):
    "Masks that load are used: those of other shapes are refused there, because they belong to another model."
    Masks.load(folder / "masks.safetensors").apply(
        torch.nn.Sequential(torch.nn.Linear(9, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    )
    return None


def read_task(names):
    def read(folder, changed):
        "What can be loaded can be told apart and encoded."
        name = names.get(changed.parent.name, str(changed))
        task = load_task(name, data_dir=None if name == str(changed) else folder)
        assert re.fullmatch("[0-9a-f]{16}", task.fingerprint()) and all(len(split) for split in task.splits.values())
        for batch in task.batches("test", TOKENIZER, batch_size=4, length=48, limit=4):
            assert all(tensor.shape[0] <= 4 and tensor.shape[-1] <= 48 for tensor in batch.values())
        return {split: sorted(rows.column_names) for split, rows in task.splits.items()}

    return read


def read_rows(load):
    def read(folder, changed):
        "Rows that load can be compared, or told why not."
        assert len(leaderboard(load(folder), n_resamples=20))

    return read


def read_config(folder, changed):
    values = read_json(changed)
    if (
        not isinstance(values, dict)
        or not {*values} <= {*Config.__dataclass_fields__}
        or not {"model", "task", "method", "sparsity"} <= {*values}
    ):
        return None  # no call of Config
    config = Config(**values)
    check(config)
    assert (
        re.fullmatch("[0-9a-f]{16}", row_id(config))
        and 0 <= config.seed < 2**32
        and (config.sparsity is None or 0 <= config.sparsity < 1)
    )


Group = namedtuple("Group", "cases make files read")
GROUPS = {  # name → how many cases, what makes the original, the files that are changed, what reads them
    "bert: configuration": Group(60, plain("bert", "tiny-bert"), "model/config.json", read_model),
    "bert: tokenizer": Group(50, plain("bert", "tiny-bert"), "model/tokenizer*.json", read_model),
    "bert: weights": Group(60, plain("bert", "tiny-bert"), "model/*.safetensors", read_model),
    "llama: configuration": Group(50, plain("llama", "tiny-llama"), "model/*config.json", read_model),
    "llama: shards": Group(60, sharded, "model/model*", read_model),
    "pruned: description": Group(60, pruned("dense", "uneven"), "model/pruned.json", read_pruned),
    "pruned: weights": Group(40, pruned("dense", "uniform"), "model/*.safetensors", read_pruned_by_a_forger),
    "pruned and sparse: description": Group(40, pruned("sparse", "uneven", "llama"), "model/[cp]*.json", read_pruned),
    "pruned and sparse: weights": Group(70, pruned("sparse", "uneven"), "model/*.safetensors", read_pruned_by_a_forger),
    "perceptron": Group(40, perceptron, "model/*", read_model),
    "masks": Group(100, masks, "*.safetensors", read_masks),
    "GLUE": Group(60, glue, "*/*.tsv", read_task({"SST-2": "glue/sst2", "STS-B": "glue/stsb"})),
    "SQuAD": Group(60, questions, "*/*.json", read_task({"squad": "squad", "squad_v2": "squad_v2"})),
    "text": Group(30, paragraphs, "*.txt", read_task({})),
    "C4": Group(40, documents, "c4/*", read_task({"c4": "c4"})),
    "rows": Group(60, loose_rows, "rows/*.json", read_rows(load_rows)),
    "rows in one file": Group(
        40,
        lambda folder: save_rows(CONTEST, folder / "rows.json.gz"),
        "*.gz",
        read_rows(lambda folder: saved_rows(folder / "rows.json.gz")),
    ),
    "configurations": Group(80, configs, "*.json", read_config),
}
TOKENIZER = AutoTokenizer.from_pretrained(locate_model("tiny-bert"))


# ---- guards


class TooLong(BaseException):
    "No `except Exception` stops it."


def too_long(*_):
    raise TooLong(f"more than {SECONDS} seconds")


WATCHED = {"where": None, "seen": []}  # the folder that may be written to, and what happened elsewhere
WRITES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "shutil.rmtree",
    "shutil.move",
}
STARTS = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.connect", "pty.spawn"}


def watch(event, arguments):
    "An audit hook: what is written outside the folder, which processes start, and whether a bait is opened."
    if WATCHED["where"] is None:
        return
    if event in STARTS:
        WATCHED["seen"].append(f"{event} {arguments!r}"[:200])
        return
    if event != "open" and event not in WRITES or not isinstance(arguments[0], (str, bytes)):
        return
    path = os.path.realpath(os.fsdecode(arguments[0]))
    writing = event in WRITES or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if (
        "bait" in os.path.basename(path)
        or writing
        and not path.startswith(WATCHED["where"])
        and "__pycache__" not in path
    ):
        WATCHED["seen"].append(f"{event} {path}")


sys.addaudithook(watch)


@pytest.fixture(scope="module", autouse=True)
def little_memory():
    "No more than a few gigabytes beyond what is there already: what asks for more fails at once."
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(
        resource.RLIMIT_AS,
        (int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + BYTES, before[1]),
    )
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def tree(root, without) -> dict:
    "Everything below a folder, with its size and time, but for one part."
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if without != path and without not in path.parents
    }


def outcome(group, folder, changed, expected) -> str:
    "What is wrong with how a case ended; empty where nothing is."
    WATCHED.update(where=os.path.realpath(folder), seen=[])
    handler = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        found = group.read(folder, changed)
        if found != expected:
            return f"another load: {found}"
    except (UsageError, RunError) as error:
        text = str(error)
        if "\n" in text or len(text) > 900 or "allocate" in text or not text.strip().endswith((".", ")")):
            return f"no clear sentence: {text!r}"
    except (Exception, TooLong) as error:
        return f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)
        WATCHED["where"] = None
    return f"it touched {WATCHED['seen'][:3]}" if WATCHED["seen"] else ""


def attempt(name, seed, original, room, expected) -> str:
    "One case, in a folder of its own; returns what went wrong with it."
    group, rng = GROUPS[name], random.Random(f"{name} {seed}")
    folder = shutil.copytree(original, room / "outer" / "case")
    changed = rng.choice([path for path in sorted(folder.glob(group.files)) if path.is_file()])
    told = mutate(rng, changed)
    before = tree(room, folder)
    wrong = outcome(group, folder, changed, expected[changed.relative_to(folder)])
    if tree(room, folder) != before:
        wrong += " files outside changed"
    shutil.rmtree(folder)
    return wrong and f"{name}, seed {seed}: {changed.relative_to(folder)}, {told}: {wrong}"


@pytest.mark.parametrize("name", GROUPS)
def test_a_sentence_or_a_correct_load(name, tmp_path):
    original, room, group = tmp_path / "original", tmp_path / "room", GROUPS[name]
    original.mkdir()
    torch.manual_seed(0)
    group.make(original)
    for place in (room, room / "outer"):
        place.mkdir()
        for bait in ("bait.json", "bait.txt"):
            (place / bait).write_text("{}")
        shutil.copy(next(original.rglob("*.safetensors"), place / "bait.json"), place / "bait.safetensors")
    expected = {
        path.relative_to(original): group.read(original, path) for path in original.glob(group.files) if path.is_file()
    }
    wrong = list(filter(None, (attempt(name, seed, original, room, expected) for seed in range(group.cases))))
    assert not wrong, f"{len(wrong)} of {group.cases} cases:\n" + "\n".join(wrong[:25])


def test_there_are_a_thousand():
    assert sum(group.cases for group in GROUPS.values()) == 1000
