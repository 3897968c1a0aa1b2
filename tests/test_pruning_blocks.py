"Block by block: against full passes through the model as it is at each moment, and what must not matter or remain."

import errno
import os
import weakref
from functools import partial

import pytest
import torch
from architectures import ARCHITECTURES, batch
from torch import nn

from pruneresearch.basics.errors import RunError, UsageError
from pruneresearch.model.anatomy import anatomy
from pruneresearch.pruning import blocks as room
from pruneresearch.pruning.blocks import block_by_block
from pruneresearch.pruning.statistics import INPUT_STATISTICS, calibrate

NAMES = list(ARCHITECTURES)


def zero_half(block):
    "Something that changes what a block puts out."
    for linear in block.linears.values():
        linear.weight[:, ::2] = 0


def visited(model, batches, change=zero_half, needs=INPUT_STATISTICS, **how):
    "name → statistics of a visit in which every block is changed."
    found = {}
    for block, statistics in block_by_block(model, batches, needs, **how):
        found |= statistics
        change(block)
    return found


def by_full_passes(model, batches, change=zero_half):
    "The same from one full pass per block through the model as it is by then."
    found, structure = {}, anatomy(model)
    for block in structure.blocks:
        linears = {block.names[role]: linear for role, linear in block.linears.items()}
        found |= calibrate(model, batches, linears, INPUT_STATISTICS)
        with torch.no_grad():
            change(block)
    return found


def same(a, b, **how):
    assert a.keys() == b.keys()
    for name in a:
        for need in INPUT_STATISTICS:
            found, expected = getattr(a[name], need), getattr(b[name], need)
            torch.testing.assert_close(found, expected, **how, msg=partial("{}.{}: {}".format, name, need))


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("name", NAMES)
def test_statistics_are_those_of_a_full_pass_through_the_pruned_model(name, padded):
    batches = [batch(name, n=4, padded=padded, seed=s) for s in (0, 1)]
    same(visited(ARCHITECTURES[name](), batches), by_full_passes(ARCHITECTURES[name](), batches), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_statistics_of_later_blocks_differ_from_the_dense_models(name):
    batches = [batch(name, n=4)]
    dense = calibrate(ARCHITECTURES[name](), batches, anatomy(ARCHITECTURES[name]()).linears, INPUT_STATISTICS)
    found, last = visited(ARCHITECTURES[name](), batches), anatomy(ARCHITECTURES[name]()).blocks[-1]
    assert not torch.allclose(found[last.names["q"]].norm, dense[last.names["q"]].norm, rtol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_batches_do_not_matter(name):
    data = batch(name, n=8, padded=True)
    singles = [{key: value[i : i + 1] for key, value in data.items()} for i in range(8)]
    same(visited(ARCHITECTURES[name](), [data]), visited(ARCHITECTURES[name](), singles), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_examples_as_tokens(name):
    data = batch(name, n=12, length=12, padded=True)
    parts = [{key: value[i : i + 4] for key, value in data.items()} for i in (0, 4, 8)]
    same(visited(ARCHITECTURES[name](), [data]), visited(ARCHITECTURES[name](), parts), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_offloading_does_not_matter(name, tmp_path):
    batches = [batch(name, n=3, padded=True, seed=s) for s in (0, 1)]
    here = visited(ARCHITECTURES[name](), batches)
    for place in ("cpu", tmp_path / "offload"):
        same(here, visited(ARCHITECTURES[name](), batches, offload=place), rtol=0, atol=0)
    assert not list((tmp_path / "offload").iterdir())


def test_statistics_of_bfloat16_weights_are_float32():
    model = ARCHITECTURES["llama"]().to(torch.bfloat16)
    found = visited(model, [batch("llama")])
    assert {getattr(statistics, need).dtype for statistics in found.values() for need in INPUT_STATISTICS} == {
        torch.float32
    }


def test_layers_with_one_input_share_one_matrix():
    structure = anatomy(ARCHITECTURES["llama"]())
    found = visited(ARCHITECTURES["llama"](), [batch("llama"), batch("llama", seed=1)])
    for block in structure.blocks:
        grams = {role: found[name].gram for role, name in block.names.items()}
        assert grams["q"] is grams["k"] is grams["v"] and grams["gate"] is grams["up"]
        assert len({id(gram) for gram in grams.values()}) == 4


def test_one_tensor_given_twice_counts_twice():
    line, x = nn.Linear(3, 2), torch.randn(4, 3)
    once, twice = (calibrate(line, [dict(inputs=x)] * n, {"line": line}, INPUT_STATISTICS)["line"] for n in (1, 2))
    torch.testing.assert_close(twice.norm, once.norm * 2**0.5)
    torch.testing.assert_close(twice.gram, once.gram)


def test_the_output_of_the_last_layer_is_not_computed():
    model, ran = ARCHITECTURES["llama"](), []
    structure = anatomy(model)
    for block in structure.blocks:
        block.linears["down"].register_forward_hook(lambda *_, i=block.index: ran.append(i))
    visited(model, [batch("llama", seed=s) for s in range(4)])
    # one whole call shows what the first block returns, and one example that each block runs once; then in each block
    # the first batch runs whole, to learn the order, and three are cut short; four propagate, but for the last block
    assert [ran.count(block.index) for block in structure.blocks] == [1 + 1 + 1 + 4, 1 + 1 + 4, 1 + 1]


def test_finished_blocks_are_only_run_through():
    batches, kept = [batch("llama")], {}
    whole = visited(ARCHITECTURES["llama"](), batches)
    model = ARCHITECTURES["llama"]()
    with torch.no_grad():
        zero_half(anatomy(model).blocks[0])
    for block, statistics in block_by_block(model, batches, INPUT_STATISTICS, done=1):
        kept |= statistics
        zero_half(block)
    same(kept, {name: statistics for name, statistics in whole.items() if name in kept}, rtol=0, atol=0)
    assert len(kept) == len(whole) * 2 // 3


@pytest.mark.parametrize("name", NAMES)
def test_nothing_remains(name):
    model = ARCHITECTURES[name]().train()
    before, cache = {n: p.clone() for n, p in model.named_parameters()}, getattr(model.config, "use_cache", None)
    visits = block_by_block(model, [batch(name)], INPUT_STATISTICS)
    next(visits)
    visits.close()  # the visitor gives up in the middle
    assert all(p.requires_grad and torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert all(module.training for module in model.modules()) and getattr(model.config, "use_cache", None) == cache
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
    assert torch.is_grad_enabled()


def test_gradients_are_off_inside_only():
    for block, _ in block_by_block(ARCHITECTURES["llama"](), [batch("llama")]):
        assert torch.is_grad_enabled() and not any(p.requires_grad for p in block.module.parameters())


def test_a_full_disk_is_said_before_the_work(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(room.os, "posix_fallocate", full)
    with pytest.raises(RunError, match="No space left on device.*free some space"):
        visited(ARCHITECTURES["llama"](), [batch("llama")], offload=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_none(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="name a folder that can be written"):
        visited(ARCHITECTURES["llama"](), [batch("llama")], offload=tmp_path / "file" / "x")


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(needs={"gradient"}), "gradients need the whole model"),
        (dict(batches=[]), "the calibration set is empty"),
        (dict(model=nn.Sequential(nn.Linear(2, 2))), "has no transformer blocks"),
    ],
)
def test_bad_calls(how, message):
    arguments = dict(model=ARCHITECTURES["llama"](), batches=[batch("llama")], needs=INPUT_STATISTICS) | how
    with pytest.raises(UsageError, match=message):
        next(block_by_block(**arguments))


def test_only_one_blocks_statistics_are_held():
    "Not even while the next block is calibrated: a hook in it looks for the matrices of the block before."
    model, held, counts = ARCHITECTURES["llama"](), [], []
    for block in anatomy(model).blocks:
        block.linears["q"].register_forward_pre_hook(lambda *_: counts.append(sum(ref() is not None for ref in held)))
    for _, statistics in block_by_block(model, [batch("llama")], INPUT_STATISTICS):
        assert not any(ref() is not None for ref in held)
        held = [weakref.ref(getattr(layer, need)) for layer in statistics.values() for need in INPUT_STATISTICS]
        assert all(ref() is not None for ref in held)
        del statistics
    assert counts and not any(counts)


def test_statistics_that_the_visitor_keeps_stay():
    kept = [statistics for _, statistics in block_by_block(ARCHITECTURES["llama"](), [batch("llama")])]
    assert len(kept) == 3 and all(layer.norm.all() for statistics in kept for layer in statistics.values())


def test_one_attribute_is_put_back_where_there_was_one_and_deleted_where_there_was_none():
    class Thing:
        size = 3

    own, inherited = Thing(), Thing()
    own.size = 4
    with pytest.raises(KeyError), room._replaced([own, inherited], "size", [5, 6]):
        assert (own.size, inherited.size) == (5, 6)
        raise KeyError
    assert (own.size, inherited.size) == (4, 3) and "size" not in vars(inherited)
