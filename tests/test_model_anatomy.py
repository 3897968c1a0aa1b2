"Anatomy: every unit of every architecture, checked against a model that runs with the unit silenced."

import copy
import dataclasses

import pytest
import torch
from architectures import ARCHITECTURES, VOCAB, batch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForQuestionAnswering,
    OpenAIGPTConfig,
    OpenAIGPTModel,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutput

from pruneresearch.basics.errors import UsageError
from pruneresearch.model.anatomy import anatomy
from pruneresearch.model.families import LAYOUTS, Layout, layout_of, register_layout

NAMES = list(ARCHITECTURES)
GROUPED = ("llama", "mistral", "qwen2")


@pytest.fixture
def layouts():
    "Whatever a test registers is forgotten afterwards."
    before = dict(LAYOUTS)
    yield LAYOUTS
    LAYOUTS.clear()
    LAYOUTS.update(before)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


def silenced(model, consumer, columns, inputs):
    "The oracle: the consumer receives zeros in these columns while the model runs."

    def zero(_, args):
        x = args[0].clone()
        x[..., columns] = 0
        return (x,)

    hook = model.get_submodule(consumer).register_forward_pre_hook(zero)
    try:
        return logits(model, inputs)
    finally:
        hook.remove()


def masked(model, masks):
    "A copy of the model with the masked entries at zero."
    model = copy.deepcopy(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            assert mask.dtype == torch.bool and mask.shape == parameters[name].shape
            parameters[name].mul_(mask)
    return model


def units(name):
    "Every unit as (block, kind, unit, its consumer columns), from the sizes in tests/architectures.py alone."
    kv, width = (2, 16) if name in GROUPED else (4, 8)
    for block in range(3 if name == "llama" else 2):
        yield from ((block, "heads", unit, list(range(unit * width, (unit + 1) * width))) for unit in range(kv))
        yield from ((block, "neurons", unit, [unit]) for unit in (0, 1, 31, 63))


def all_but(count, *units):
    keep = torch.ones(count, dtype=torch.bool)
    keep[list(units)] = False
    return keep


# what a unit owns


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_masking_a_unit_silences_exactly_that_unit(name, padded):
    model, inputs = ARCHITECTURES[name](), batch(name, 3, 10, padded)
    blocks, dense = anatomy(model).blocks, logits(model, inputs)
    for block, kind, unit, columns in units(name):
        group = getattr(blocks[block], kind)
        expected = silenced(model, group.consumer, columns, inputs)
        torch.testing.assert_close(
            logits(masked(model, group.weight_masks(all_but(group.count, unit))), inputs), expected
        )
        if kind == "heads":
            assert (expected - dense).abs().max() > 1e-4  # or the comparison would show nothing


@pytest.mark.parametrize("name", NAMES)
def test_producers_alone_and_consumer_alone_silence_the_same_unit(name):
    "This is where a wrong order of o's columns under grouped-query attention would show."
    model, inputs = ARCHITECTURES[name](), batch(name, 3, 10)
    for block, kind, unit, columns in units(name):
        group = getattr(anatomy(model).blocks[block], kind)
        masks = group.weight_masks(all_but(group.count, unit))
        alone = {parameter: mask for parameter, mask in masks.items() if parameter.startswith(group.consumer)}
        expected = silenced(model, group.consumer, columns, inputs)
        values = anatomy(model).blocks[block].names["v"] if kind == "heads" else list(group.producers)[-1]
        first = {parameter: mask for parameter, mask in masks.items() if parameter.startswith(values)}
        torch.testing.assert_close(logits(masked(model, alone), inputs), expected)
        torch.testing.assert_close(logits(masked(model, first), inputs), expected)


@pytest.mark.parametrize("name", NAMES)
def test_masks_cover_the_units_and_nothing_else(name):
    model = ARCHITECTURES[name]()
    parameters = dict(model.named_parameters())
    for group in anatomy(model).groups:
        keep = all_but(group.count, 0, group.count - 1)
        masks = group.weight_masks(keep)
        assert f"{group.consumer}.bias" not in masks
        for producer, rows in group.producers.items():
            assert (f"{producer}.bias" in masks) == (f"{producer}.bias" in parameters)
            assert (~masks[f"{producer}.weight"]).sum() == 2 * rows * 32
            assert group.rows(producer, keep).sum() == (group.count - 2) * rows
        assert (~masks[f"{group.consumer}.weight"]).sum() == 2 * group.columns * 32
        assert all(mask.all() for mask in group.weight_masks(all_but(group.count)).values())
        assert not any(mask.any() for mask in group.weight_masks(~all_but(group.count)).values())


@pytest.mark.parametrize("name", NAMES)
def test_each_layer_belongs_to_one_group_only(name):
    owned = [layer for group in anatomy(ARCHITECTURES[name]()).groups for layer in group.linears]
    assert sorted(owned) == sorted(set(owned)) == sorted(anatomy(ARCHITECTURES[name]()).linears)


@pytest.mark.parametrize("name", NAMES)
def test_masks_of_several_units_add_up(name):
    group = anatomy(ARCHITECTURES[name]()).blocks[1].neurons
    one, two, both = (group.weight_masks(all_but(64, *gone)) for gone in ((3,), (40,), (3, 40)))
    assert all(torch.equal(one[parameter] & two[parameter], both[parameter]) for parameter in both)


# counts


@pytest.mark.parametrize("name", NAMES)
def test_counts(name):
    found = anatomy(ARCHITECTURES[name]())
    grouped = name in GROUPED
    assert len(found.blocks) == (3 if name == "llama" else 2)
    assert len(found.linears) == len(found.blocks) * (7 if grouped else 6)
    for index, block in enumerate(found.blocks):
        assert block.index == index == block.heads.block == block.neurons.block
        assert list(block.linears) == ["q", "k", "v", "o"] + (["gate", "up", "down"] if grouped else ["fc1", "fc2"])
        assert (block.heads.count, block.heads.columns) == ((2, 16) if grouped else (4, 8))
        assert list(block.heads.producers.values()) == ([16, 8, 8] if grouped else [8, 8, 8])
        assert (block.neurons.count, block.neurons.columns, set(block.neurons.producers.values())) == (64, 1, {1})


@pytest.mark.parametrize("name", NAMES)
def test_names_are_those_of_the_model_and_forward_order_is_right(name):
    model, seen = ARCHITECTURES[name](), []
    found = anatomy(model)
    parameters = dict(model.named_parameters())
    for layer, linear in found.linears.items():
        assert parameters[f"{layer}.weight"] is linear.weight
        linear.register_forward_hook(lambda *_, layer=layer: seen.append(layer))
    logits(model, batch(name, 2, 6))
    assert seen == list(found.linears)
    for block in found.blocks:
        assert model.get_submodule(block.name) is block.module
        assert all(found.block_of(layer) == block.index for layer in block.names.values())


def test_every_head_is_a_unit_without_grouping_and_one_unit_with_one_key_value_head():
    alone = anatomy(ARCHITECTURES["llama"](num_key_value_heads=4)).blocks[0].heads
    assert (alone.count, alone.columns) == (4, 8)
    multi_query = anatomy(ARCHITECTURES["llama"](num_key_value_heads=1)).blocks[0].heads
    assert (multi_query.count, multi_query.columns, list(multi_query.producers.values())) == (1, 32, [32, 8, 8])


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_head_size_of_its_own(name):
    "head_dim need not be hidden_size / heads."
    model, inputs = ARCHITECTURES[name](head_dim=12), batch(name, 2, 8)
    group = anatomy(model).blocks[0].heads
    assert (group.count, group.columns, list(group.producers.values())) == (2, 24, [24, 12, 12])
    expected = silenced(model, group.consumer, list(range(24, 48)), inputs)
    torch.testing.assert_close(logits(masked(model, group.weight_masks(all_but(2, 1))), inputs), expected)


# slicing: rows, cols and sizes are enough to make a block really smaller


def slice_by_hand(model, group, keep):
    "Slice a group's layers and set the sizes that the layout names."
    block, layout = anatomy(model).blocks[group.block], layout_of(model)
    with torch.no_grad():
        for name in group.producers:
            linear, rows = group.linears[name], group.rows(name, keep)
            linear.weight = nn.Parameter(linear.weight[rows])
            if linear.bias is not None:
                linear.bias = nn.Parameter(linear.bias[rows])
        consumer = group.linears[group.consumer]
        consumer.weight = nn.Parameter(consumer.weight[:, group.cols(keep)])
    width = block.linears["q"].weight.shape[0]
    now = {"neurons": int(keep.sum())} if group.kind == "neurons" else {"heads": width // 8, "width": width}
    for path, size in layout.sizes.items():
        if size in now:
            *owner, attribute = path.split(".")
            setattr(block.module.get_submodule(".".join(owner)), attribute, now[size])


@pytest.mark.parametrize("name", NAMES)
def test_sliced_model_equals_masked_model_and_has_a_right_anatomy(name):
    model, inputs = ARCHITECTURES[name](), batch(name, 3, 10, padded=True)
    groups = anatomy(model).groups[:3]  # block 0 loses heads and neurons, block 1 heads: widths differ per block
    keeps = [all_but(group.count, 1) if group.kind == "heads" else all_but(group.count, 0, 7, 50) for group in groups]
    masks = {}
    for group, keep in zip(groups, keeps, strict=True):
        masks |= group.weight_masks(keep)
    expected = logits(masked(model, masks), inputs)
    for group, keep in zip(groups, keeps, strict=True):
        slice_by_hand(model, group, keep)
    torch.testing.assert_close(logits(model, inputs), expected)

    first, second, *_ = anatomy(model).blocks
    left = 1 if name in GROUPED else 3
    assert (first.heads.count, first.neurons.count) == (left, 61) and (second.heads.count, second.neurons.count) == (
        left,
        64,
    )
    assert (first.heads.columns, first.heads.producers) == (groups[0].columns, groups[0].producers)
    keep = all_but(61, 5)
    torch.testing.assert_close(
        logits(masked(model, first.neurons.weight_masks(keep)), inputs),
        silenced(model, first.neurons.consumer, [5], inputs),
    )


@pytest.mark.parametrize(
    "q, k, v, o",
    [
        (24, 32, 32, 32),
        (32, 24, 32, 32),
        (32, 32, 24, 32),
        (32, 32, 32, 24),  # one layer forgot, or went alone
        (20, 20, 20, 20),
        (80, 20, 16, 64),
        (32, 0, 0, 0),
        (24, 16, 16, 24),
    ],
)  # half a head, twice; no keys; three queries for two keys
def test_attention_widths_that_do_not_fit_are_refused(q, k, v, o):
    model = ARCHITECTURES["bert"]()
    linears = anatomy(model).blocks[1].linears
    for role, width in zip("qkv", (q, k, v), strict=True):
        linears[role].weight = nn.Parameter(torch.zeros(width, 32))
    linears["o"].weight = nn.Parameter(torch.zeros(32, o))
    with pytest.raises(UsageError, match=f"block 1.*q {q}, k {k}, v {v}, o {o}.*heads of 8"):
        anatomy(model)


def test_ffn_widths_that_do_not_fit_are_refused():
    model = ARCHITECTURES["llama"]()
    up = anatomy(model).blocks[0].linears["up"]
    up.weight = nn.Parameter(up.weight[:60])
    with pytest.raises(UsageError, match="block 0.*gate 64, up 60, down 64"):
        anatomy(model)


def test_a_block_without_any_head_left():
    model = ARCHITECTURES["llama"]()
    slice_by_hand(model, anatomy(model).blocks[0].heads, torch.zeros(2, dtype=torch.bool))
    group = anatomy(model).blocks[0].heads
    assert group.count == 0
    assert all(mask.numel() == 0 for mask in group.weight_masks(torch.zeros(0, dtype=torch.bool)).values())


@pytest.mark.parametrize(
    "keep", [torch.ones(3, dtype=torch.bool), torch.ones(4), [True] * 4, torch.ones(1, 4, dtype=torch.bool)]
)
def test_a_wrong_choice_of_units_is_refused(keep):
    group = anatomy(ARCHITECTURES["bert"]()).blocks[0].heads
    for call in (group.weight_masks, group.cols, lambda keep: group.rows(list(group.producers)[0], keep)):
        with pytest.raises(UsageError, match=r"block 0 has 4 heads.*shape \(4,\)"):
            call(keep)


def test_rows_of_something_that_is_no_producer():
    group = anatomy(ARCHITECTURES["bert"]()).blocks[0].heads
    with pytest.raises(UsageError, match="unknown producer"):
        group.rows(group.consumer, torch.ones(4, dtype=torch.bool))


# scope


@pytest.mark.parametrize("name", NAMES)
def test_bare_model_has_the_blocks_of_the_model_with_a_head(name):
    model = ARCHITECTURES[name]()
    whole, bare = anatomy(model), anatomy(model.base_model)
    assert [block.module for block in bare.blocks] == [block.module for block in whole.blocks]
    assert list(bare.linears.values()) == list(whole.linears.values())
    prefix = model.base_model_prefix
    assert [f"{prefix}.{layer}" for layer in bare.linears] == list(whole.linears)


def test_head_classes_that_call_their_base_differently():
    config = ARCHITECTURES["llama"]().config
    assert len(anatomy(LlamaForQuestionAnswering(config)).blocks) == 3


@pytest.mark.parametrize("name", NAMES)
def test_all_linear_adds_the_rest_but_never_tied_weights(name):
    model = ARCHITECTURES[name]()
    narrow, wide = anatomy(model), anatomy(model, "all-linear")
    assert list(wide.linears)[: len(narrow.linears)] == list(narrow.linears)
    added = set(wide.linears) - set(narrow.linears)
    assert added == {
        "bert": {"bert.pooler.dense", "classifier"},
        "roberta": {"classifier.dense", "classifier.out_proj"},
        "distilbert": {"pre_classifier", "classifier"},
        "llama": {"lm_head"},
        "qwen2": {"lm_head"},
    }.get(name, set())
    assert all(wide.block_of(layer) is None for layer in added)
    embeddings = {module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)}
    assert not embeddings & {linear.weight.data_ptr() for linear in wide.linears.values()}


def test_tied_weights_that_are_views_or_masked_language_models():
    plain = nn.ModuleDict(
        {"table": nn.Embedding(9, 4), "head": nn.Linear(4, 9), "part": nn.Linear(4, 5), "free": nn.Linear(4, 9)}
    )
    plain["head"].weight = plain["table"].weight
    plain["part"].weight = nn.Parameter(plain["table"].weight.detach()[4:])
    assert list(anatomy(plain).linears) == ["free"]
    encoder = BertForMaskedLM(ARCHITECTURES["bert"]().config)
    assert "cls.predictions.decoder" not in anatomy(encoder, "all-linear").linears
    assert "cls.predictions.transform.dense" in anatomy(encoder, "all-linear").linears


def test_plain_module():
    mlp = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 3)))
    for scope in ("blocks", "all-linear"):
        found = anatomy(mlp, scope)
        assert found.blocks == found.groups == () and list(found.linears) == ["0", "2.0"]
        assert (found.weights, found.parameters, found.block_of("0")) == (45, 53, None)
    assert anatomy(nn.ReLU()).linears == {}


def test_bert_base_arithmetic():
    with torch.device("meta"):
        model = BertModel(BertConfig())
    assert anatomy(model).weights == 84_934_656 and anatomy(model, "all-linear").weights == 85_524_480
    assert anatomy(model).parameters == 109_482_240
    text = str(anatomy(model, "all-linear"))
    assert (
        len(text.splitlines()) < 15
        and "85,524,480" in text
        and "78.1%" in text
        and "0–11" in text
        and "pooler.dense" in text
    )


def test_summary_splits_where_blocks_differ_and_its_weights_add_up():
    model = ARCHITECTURES["llama"]()
    slice_by_hand(model, anatomy(model).blocks[1].neurons, all_but(64, 3))
    found = anatomy(model, "all-linear")
    lines = [line.split() for line in str(found).splitlines()[2:]]
    assert [line[0] for line in lines if line[1] == "up"] == ["0", "1", "2"]
    weights = [int(line[-2].replace(",", "")) for line in lines[:-2]]
    assert sum(weights) == found.weights


# errors and layouts of one's own


def test_unknown_names():
    model = ARCHITECTURES["bert"]()
    with pytest.raises(UsageError, match="unknown scope 'block': did you mean 'blocks'"):
        anatomy(model, "block")
    with pytest.raises(UsageError, match="unknown linear layer in scope"):
        anatomy(model).block_of("classifier")
    with pytest.raises(UsageError, match="torch module, not a str"):
        anatomy("bert-base-uncased")


def test_unknown_architecture_names_the_known_and_the_way():
    sizes = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    model = PhiForCausalLM(PhiConfig(vocab_size=9, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes))
    with pytest.raises(UsageError) as caught:
        anatomy(model)
    message = str(caught.value)
    assert (
        all(name in message for name in NAMES) and "register_layout('phi', Layout(" in message and "\n" not in message
    )


def test_layers_that_are_not_linear(layouts):
    register_layout("gpt2", Layout("h", {"fc1": "mlp.c_fc", "fc2": "mlp.c_proj"}))
    model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=9))
    with pytest.raises(UsageError, match="'mlp.c_fc'.*Conv1D.*only nn.Linear"):
        anatomy(model)


@pytest.mark.parametrize(
    "change, path",
    [
        ({"blocks": "encoder.layers"}, "encoder.layers"),
        ({"head_dim": "self_attn.size"}, "self_attn.size"),
        ({"roles": LAYOUTS["llama"].roles | {"up": "mlp.upper"}}, "mlp.upper"),
    ],
)
def test_paths_that_do_not_exist(layouts, change, path):
    register_layout("llama", dataclasses.replace(LAYOUTS["llama"], **change))
    with pytest.raises(UsageError, match=f"{path!r}.*does not exist"):
        anatomy(ARCHITECTURES["llama"]())


@pytest.mark.parametrize(
    "model_type, layout, message",
    [
        ("", LAYOUTS["bert"], "model type"),
        (None, LAYOUTS["bert"], "model type"),
        ("mine", {"blocks": "layers"}, "not a dict"),
        ("mine", Layout("", {"fc1": "a", "fc2": "b"}), "must be text"),
        ("mine", Layout("layers", {"fc1": "a", "fc2": nn.Linear}), "must be text"),
        ("mine", Layout("layers", {}), "do not make a block"),
        ("mine", Layout("layers", {"q": "q"}, "d"), "do not make a block"),
        ("mine", Layout("layers", {"fc1": "a", "gate": "b"}), "do not make a block"),
        ("mine", Layout("layers", dict(q="q", k="k", v="v", o="o")), "needs head_dim"),
        ("mine", Layout("layers", ["fc1", "fc2"]), "roles"),
        ("mine", Layout("layers", {"fc1": "a", "fc2": "b"}, sizes={"n": "rows"}), "sizes"),
        ("mine", Layout("layers", {"fc1": "a", "fc2": "b"}, config={"rows": "n"}), "config"),
        ("mine", Layout("layers", {1: "a", 2: "b"}), "must be text"),
        ("mine", Layout("layers", {"fc1": "a", "fc2": "b"}, sizes={"n": ["heads"]}), "must be text"),
    ],
)
def test_registering_something_wrong(layouts, model_type, layout, message):
    before = dict(layouts)
    with pytest.raises(UsageError, match=message):
        register_layout(model_type, layout)
    assert layouts == before


class OwnConfig(PreTrainedConfig):
    model_type = "own-mixer"


class OwnBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.size = 4
        self.ask, self.find, self.say = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.join, self.wide, self.narrow = nn.Linear(12, 12), nn.Linear(12, 10), nn.Linear(10, 12)

    def forward(self, x):
        def split(y):
            return y.unflatten(-1, (-1, self.size)).transpose(1, 2)

        heads = nn.functional.scaled_dot_product_attention(split(self.ask(x)), split(self.find(x)), split(self.say(x)))
        x = x + self.join(heads.transpose(1, 2).flatten(2))
        return x + self.narrow(self.wide(x).tanh())


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    base_model_prefix = "core"

    def __init__(self, config):
        super().__init__(config)
        self.words = nn.Embedding(VOCAB, 12)
        self.stack = nn.ModuleList([OwnBlock(), OwnBlock()])
        self.post_init()

    def forward(self, input_ids):
        x = self.words(input_ids)
        for block in self.stack:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


def test_a_layout_of_ones_own(layouts):
    model = OwnModel(OwnConfig()).eval()
    with pytest.raises(UsageError, match="own-mixer"):
        anatomy(model)
    register_layout(
        "own-mixer",
        Layout(
            blocks="stack",
            head_dim="size",
            roles={"q": "ask", "k": "find", "v": "say", "o": "join", "fc1": "wide", "fc2": "narrow"},
        ),
    )
    found, ids = anatomy(model), batch("own", 2, 7)["input_ids"]
    assert [(group.kind, group.count) for group in found.groups] == [("heads", 3), ("neurons", 10)] * 2

    def forward(model):
        return model(ids).last_hidden_state

    for group, columns in ((found.blocks[1].heads, [4, 5, 6, 7]), (found.blocks[0].neurons, [1])):
        layer = model.get_submodule(group.consumer)
        gone = torch.tensor(columns)
        hook = layer.register_forward_pre_hook(lambda _, args, gone=gone: (args[0].index_fill(-1, gone, 0.0),))
        expected = forward(model)
        hook.remove()
        changed = masked(model, group.weight_masks(all_but(group.count, 1)))
        torch.testing.assert_close(forward(changed), expected)
        assert not torch.equal(forward(model), expected)


def test_a_block_with_an_ffn_only(layouts):
    register_layout("own-mixer", Layout(blocks="stack", roles={"fc1": "wide", "fc2": "narrow"}))
    found = anatomy(OwnModel(OwnConfig()))
    assert [group.kind for group in found.groups] == ["neurons"] * 2 and found.blocks[0].heads is None
    assert "stack.0.ask" not in found.linears and "stack.0.ask" in anatomy(OwnModel(OwnConfig()), "all-linear").linears


@pytest.mark.parametrize("make", [
    lambda: GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=99)),
    lambda: OpenAIGPTModel(OpenAIGPTConfig(n_embd=8, n_layer=1, n_head=2, vocab_size=99)),
])  # fmt: skip
def test_layers_that_no_layout_can_describe(make):
    with pytest.raises(UsageError, match="are Conv1D and not nn.Linear.*so no layout helps") as caught:
        anatomy(make())
    assert "register_layout" not in str(caught.value)
