"A hub without a network: small random models and data, in the caches and under the ids of a download."

import json
import shutil
from pathlib import Path

import torch
from architectures import COMMON, DECODER, GPT_NEO, OPT, small
from datasets import Dataset, disable_progress_bars, enable_progress_bars
from datasets.builder import BuilderConfig
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from pruneresearch.data.documents import C4_FILES
from pruneresearch.data.tasks import load_task
from pruneresearch.model.folders import locate_model, quiet

CONTEXT, COMMIT = 128, "0123456789abcdef0123456789abcdef01234567"
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 64,
}
# id → class, configuration class, settings, saved dtype, whose tokenizer, whether that has a pad token, as at the hub
MODELS = {
    "bert-base-uncased": (BertForMaskedLM, BertConfig, COMMON, "float32", "tiny-bert", True),
    "prajjwal1/bert-small": (
        BertForMaskedLM,
        BertConfig,
        COMMON | {"num_hidden_layers": 4},
        "float32",
        "tiny-bert",
        True,
    ),
    "facebook/opt-125m": (OPTForCausalLM, OPTConfig, OPT, "float16", "tiny-llama", True),
    "meta-llama/Llama-3.2-1B": (
        LlamaForCausalLM,
        LlamaConfig,
        DECODER | {"tie_word_embeddings": True, "rope_parameters": ROPE},
        "bfloat16",
        "tiny-llama",
        False,
    ),
    "roneneldan/TinyStories-33M": (GPTNeoForCausalLM, GPTNeoConfig, GPT_NEO, "float32", "tiny-llama", False),
}


SAID_LATER = {"model_type", "architectures", "dtype", "transformers_version"}  # entries that old configurations lack


def vocabulary(tokenizer) -> list:
    "Its pieces, by number."
    return sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)


def only_a_vocabulary(folder: Path, tokenizer):
    "A BERT of 2019: no `model_type`, and of the tokenizer no more than its pieces."
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in SAID_LATER}))
    for file in folder.glob("*token*.json"):
        file.unlink()
    (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary(tokenizer)))


def vocabulary_and_merges(folder: Path, tokenizer):
    "A tokenizer of GPT-2's kind before `tokenizer.json`."
    stored = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in stored["merges"])
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()
    names = ("bos_token", "eos_token", "pad_token")
    said = {"tokenizer_class": "GPT2Tokenizer"} | {name: getattr(tokenizer, name) for name in names}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))


def pickled(folder: Path):
    "Weights from before safetensors, beside none."
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def old_names(folder: Path):
    "LayerNorm's weights under the names of the first release."
    state = load_file(folder / "model.safetensors")
    renamed = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in state.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


def aged(folder: Path, name: str, tokenizer):
    "Turn what today's transformers writes into what lies at the hub under this id."
    if name == "prajjwal1/bert-small":
        only_a_vocabulary(folder, tokenizer)
    if name == "facebook/opt-125m":
        vocabulary_and_merges(folder, tokenizer)
    if name.startswith("bert") or name.startswith("prajjwal1"):
        old_names(folder)
    if name != "meta-llama/Llama-3.2-1B" and name != "bert-base-uncased":
        pickled(folder)


def cache_model(cache: Path, name: str):
    "Put a random model into a cache of `huggingface_hub`."
    model_class, config_class, settings, dtype, tokenizer, padded = MODELS[name]
    tokenizer = AutoTokenizer.from_pretrained(locate_model(tokenizer))
    if not padded:
        tokenizer.pad_token = None
    folder = cache / f"models--{name.replace('/', '--')}"
    model = small(
        model_class,
        config_class,
        settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with quiet():
        for saved in (model.to(getattr(torch, dtype)), tokenizer):
            saved.save_pretrained(folder / "snapshots" / COMMIT)
    aged(folder / "snapshots" / COMMIT, name, tokenizer)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


def cache_data(cache: Path, repo: str, splits: dict, config: str = None, **arguments):
    "Put a data set, split → columns, into the cache of `datasets`, as `load_dataset(repo, config, **arguments)` would."
    name = repo.split("/")[1]
    config_id = BuilderConfig(config or "default").create_config_id(config_kwargs=arguments)
    folder = cache / repo.replace("/", "___") / config_id / "0.0.0" / COMMIT
    folder.mkdir(parents=True)
    disable_progress_bars()
    for split, columns in splits.items():
        made = Dataset.from_dict(columns)
        made.save_to_disk(folder / split)
        shutil.move(next((folder / split).glob("*.arrow")), folder / f"{name}-{split}.arrow")
        shutil.rmtree(folder / split)
    enable_progress_bars()
    version = {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0}
    sizes = {
        split: {"name": split, "num_examples": len(next(iter(columns.values()))), "dataset_name": name}
        for split, columns in splits.items()
    }
    (folder / "dataset_info.json").write_text(
        json.dumps(
            dict(
                features=made.features.to_dict(),
                builder_name="parquet",
                dataset_name=name,
                config_name=config_id,
                version=version,
                splits=sizes,
            )
        )
    )


def labelled(task, *names, n=240):
    "Columns of embedded examples under the names that the hub gives them."
    rows = task.splits["train"]
    return {
        split: {
            **{name: list(rows[column][part]) for name, column in zip(names, task.inputs, strict=True)},
            "label": list(rows["label"][part]),
            "idx": list(range(part.stop - part.start)),
        }
        for split, part in (("train", slice(0, n)), ("validation", slice(n, n + 40)))
    }


def offline_hub(folder: Path) -> dict:
    "Fill both caches with what the paper profile asks for. The environment variables that lead there are returned."
    for name in MODELS:
        cache_model(folder / "hub", name)
    sentiment, paraphrase, pydocs = (load_task(name) for name in ("sentiment", "paraphrase", "pydocs"))
    cache_data(folder / "datasets", "nyu-mll/glue", labelled(sentiment, "sentence"), "sst2")
    cache_data(folder / "datasets", "nyu-mll/glue", labelled(paraphrase, "sentence1", "sentence2"), "mrpc")
    cache_data(folder / "datasets", "nyu-mll/glue", labelled(paraphrase, "question1", "question2"), "qqp")
    documents = {
        split: {"text": list(pydocs.splits[source]["text"][:40])}
        for split, source in (("train", "train"), ("validation", "selection"), ("test", "test"))
    }
    lines = {
        split: {"text": [line + "\n" for text in columns["text"] for line in text.split("\n")]}
        for split, columns in documents.items()
    }
    cache_data(folder / "datasets", "Salesforce/wikitext", lines, "wikitext-2-raw-v1")
    cache_data(
        folder / "datasets",
        "allenai/c4",
        {split: documents[split] for split in C4_FILES},
        data_files=C4_FILES,
    )
    return {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_CACHE": str(folder / "hub"),
        "HF_DATASETS_CACHE": str(folder / "datasets"),
        "PRUNERESEARCH_DATA": "",
    }
