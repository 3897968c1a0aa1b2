"Small random models of every supported architecture, and batches for them."

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForSequenceClassification,
)

VOCAB, CONTEXT = 99, 64
COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=CONTEXT,
    initializer_range=0.2,
)
ENCODER = COMMON | dict(num_labels=2, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
DECODER = COMMON | dict(num_key_value_heads=2)
DISTILBERT = dict(
    vocab_size=VOCAB,
    dim=32,
    n_layers=2,
    n_heads=4,
    hidden_dim=64,
    max_position_embeddings=CONTEXT,
    initializer_range=0.2,
    num_labels=2,
)
OPT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    word_embed_proj_dim=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    ffn_dim=64,
    max_position_embeddings=CONTEXT,
    init_std=0.2,
)
GPT_NEO = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    num_layers=2,
    num_heads=4,
    intermediate_size=64,
    window_size=4,
    attention_types=[[["global", "local"], 1]],
    max_position_embeddings=CONTEXT,
    initializer_range=0.2,
)
DECODERS = ("llama", "mistral", "qwen2", "opt", "gpt_neo")  # causal LM; the others classify


def small(model_class, config_class, settings, seed=0, **changes):
    "A seeded random model in eval mode. Vectors get noise, because a bias of zero would hide a forgotten bias."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config_class(**(settings | changes))).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


# name → function making the model; keyword arguments change its configuration, `seed=` its weights
ARCHITECTURES = {
    "bert": lambda **changes: small(BertForSequenceClassification, BertConfig, ENCODER, **changes),
    "roberta": lambda **changes: small(
        RobertaForSequenceClassification, RobertaConfig, ENCODER | {"max_position_embeddings": CONTEXT + 2}, **changes
    ),
    "distilbert": lambda **changes: small(DistilBertForSequenceClassification, DistilBertConfig, DISTILBERT, **changes),
    "llama": lambda **changes: small(LlamaForCausalLM, LlamaConfig, DECODER | {"num_hidden_layers": 3}, **changes),
    "mistral": lambda **changes: small(
        MistralForCausalLM, MistralConfig, DECODER | {"tie_word_embeddings": True}, **changes
    ),
    "qwen2": lambda **changes: small(Qwen2ForCausalLM, Qwen2Config, DECODER, **changes),
    "opt": lambda **changes: small(OPTForCausalLM, OPTConfig, OPT, **changes),
    "gpt_neo": lambda **changes: small(GPTNeoForCausalLM, GPTNeoConfig, GPT_NEO, **changes),
}


def batch(name, n=4, length=12, padded=False, seed=0):
    "A random batch for the architecture `name`; padding, if any, is on the right, and -100 in a decoder's labels."
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCAB, (n, length), generator=random)  # 0–2 are special tokens in some architectures
    mask = torch.ones(n, length, dtype=torch.long)
    if padded:
        for row, real in enumerate(torch.randint(2, length, (n,), generator=random).tolist()):
            mask[row, real:] = 0
        ids[mask == 0] = 1 if name in ("roberta", "opt") else 0
    labels = ids.masked_fill(mask == 0, -100) if name in DECODERS else torch.randint(2, (n,), generator=random)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
