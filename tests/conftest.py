"""Every test runs without network, as a user on a train would. Models and tasks are made once a session.

The tests of a session share the fixtures `sentiment`, `paraphrase`, `pydocs`, `digits`, `tiny_bert`, `tiny_llama` and
`mlp`. A test that changes a model takes a copy: `model = deepcopy(tiny_bert)`.
"""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def embedded_task(name):
    "A task that ships with the package."
    from pruneresearch import load_task

    return load_task(name)


@contextmanager
def unchanged(model):
    "The model; fails at the end of the session if a test changed its weights, hooks or mode."
    import torch

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    hooked = [name for name, part in model.named_modules() if part._forward_hooks or part._forward_pre_hooks]
    assert not changed, f"a test changed a shared model without taking a copy: {changed}"
    assert not hooked, f"a test left hooks on a shared model: {hooked}"
    assert not model.training, "a test left a shared model in training mode"


def embedded_model(name, task=None):
    "A model that ships with the package, on the CPU, guarded against changes."
    from pruneresearch import load_model

    return unchanged(load_model(name, task, device="cpu"))


@pytest.fixture(scope="session")
def sentiment():
    "Single sentences with two labels."
    return embedded_task("sentiment")


@pytest.fixture(scope="session")
def paraphrase():
    "Sentence pairs with two labels."
    return embedded_task("paraphrase")


@pytest.fixture(scope="session")
def pydocs():
    "Documentation strings for language modelling."
    return embedded_task("pydocs")


@pytest.fixture(scope="session")
def digits():
    "Handwritten digits for the perceptron."
    return embedded_task("digits")


@pytest.fixture(scope="session")
def tiny_bert(sentiment):
    "The embedded encoder with an untrained head for `sentiment` (seed 0). Take a deepcopy before changing it."
    with embedded_model("tiny-bert", sentiment) as model:
        yield model


@pytest.fixture(scope="session")
def tiny_llama(pydocs):
    "The embedded decoder, trained on `pydocs`. Take a deepcopy before changing it."
    with embedded_model("tiny-llama", pydocs) as model:
        yield model


@pytest.fixture(scope="session")
def mlp(digits):
    "The embedded perceptron, trained on `digits`. Take a deepcopy before changing it."
    with embedded_model("mlp", digits) as model:
        yield model


@pytest.fixture
def small_disk(tmp_path):
    "A file system of one megabyte, where this process may mount one."
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)
