"""Architectures of Transformers, small, with batches for their `forward`."""

from typing import Any

import numpy as np

Batch = dict[str, np.ndarray]

ROWS, LENGTH, VOCABULARY = 4, 16, 96
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
IMAGES = {**TOWER, "image_size": 16, "patch_size": 8}
# Class of the model and its settings, by `model_type`.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("ForCausalLM", SIZES),
    "bert": ("ForMaskedLM", SIZES),
    "t5": ("ForSeq2SeqLM", T5),
    "llama": ("ForCausalLM", SIZES | GROUPED),
    "roberta": ("ForMaskedLM", SIZES),
    "distilbert": (
        "ForMaskedLM",
        {"vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2}
        | {"n_heads": 4, "max_position_embeddings": 64},
    ),
    "bart": ("ForSeq2SeqLM", SEQ2SEQ),
    "qwen2": ("ForCausalLM", SIZES | GROUPED),
    "qwen3": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "gemma2": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "mistral": ("ForCausalLM", SIZES | GROUPED),
    "vit": ("ForImageClassification", IMAGES),
    "mixtral": ("ForCausalLM", SIZES | GROUPED | {"num_local_experts": 4}),
    "mamba": (
        "ForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2}
        | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    ),
    "deberta-v2": ("ForMaskedLM", SIZES | {"relative_attention": True}),
    "modernbert": ("ForMaskedLM", SIZES | {"cls_token_id": 1, "sep_token_id": 2}),
    "gemma3_text": ("ForCausalLM", SIZES | GROUPED | {"head_dim": 8}),
    "clip": (
        "",
        {
            "text_config": SIZES,
            "vision_config": IMAGES,
            "projection_dim": 16,
        },
    ),
    "whisper": (
        "ForSpeechSeq2Seq",
        SEQ2SEQ
        | {"num_mel_bins": 8, "max_source_positions": 8}
        | {"max_target_positions": 64, "suppress_tokens": None}
        | {"begin_suppress_tokens": None},
    ),
    "electra": ("ForMaskedLM", SIZES | {"embedding_size": 32}),
    "albert": ("ForMaskedLM", SIZES | {"embedding_size": 16}),
    "xlm-roberta": ("ForSequenceClassification", SIZES),
    "gpt_neox": ("ForCausalLM", SIZES),
    "opt": ("ForCausalLM", SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "phi3": ("ForCausalLM", SIZES | GROUPED),
    "olmo2": ("ForCausalLM", SIZES | GROUPED),
    "smollm3": ("ForCausalLM", SIZES | GROUPED),
    "granite": ("ForCausalLM", SIZES | GROUPED),
    "cohere": ("ForCausalLM", SIZES | GROUPED),
    "starcoder2": ("ForCausalLM", SIZES | GROUPED),
    "falcon": ("ForCausalLM", SIZES),
    "bloom": ("ForCausalLM", SIZES),
    "qwen3_moe": (
        "ForCausalLM",
        SIZES
        | GROUPED
        | {"num_experts": 4, "num_experts_per_tok": 2}
        | {"moe_intermediate_size": 32, "head_dim": 8},
    ),
    # It has two classes of this name, of which `architectures` chooses one.
    "deit": (
        "ForImageClassification",
        IMAGES | {"architectures": ["DeiTForImageClassification"]},
    ),
    # A second head of an architecture that is already above.
    "bert-tokens": ("ForTokenClassification", SIZES),
}


def build(name: str, *, dtype: str = "float32") -> Any:
    """Returns a small module of an architecture in training mode, without dropout."""
    import torch
    import transformers

    kind, settings = ARCHITECTURES[name]
    config = transformers.AutoConfig.for_model(name.partition("-tokens")[0], **settings)
    parts = [config, *(getattr(config, part) for part in config.sub_configs)]
    for part in parts:
        for field in list(vars(part)):
            value = getattr(part, field)
            if "drop" in field and isinstance(value, float):
                setattr(part, field, 0.0)
    torch.manual_seed(0)
    module = getattr(transformers, f"AutoModel{kind}").from_config(config)
    if dtype == "float64" and has_experts(module):
        # The default implementation has no float64.
        module.set_experts_implementation("eager")
    # Weights are drawn in float32, so that they are equal in both dtypes.
    return module.to(getattr(torch, dtype)).train()


def has_experts(module: Any) -> bool:
    """Returns whether a module has experts, whose weights are stacked in one tensor."""
    named = module.named_parameters()
    return any(".experts." in name and p.ndim == 3 for name, p in named)


def make_batches(name: str, num_labels: int, num: int) -> list[Batch]:
    """Returns batches for the `forward` of an architecture, each with other values.

    On the same few batches a loss falls to nearly 0, where its float32 is a difference
    of equal numbers: CLIP's is 2e-4 after 20 steps on two batches, and PyTorch itself
    is then 2.6e-4 away from its float64 run.
    """
    kind = ARCHITECTURES[name][0]
    rng = np.random.default_rng(0)
    # With as many rows of each class, the gradient of the last bias is a difference of
    # nearly equal numbers.
    classes = np.array([1, 0, 0, 0], np.int32) % num_labels

    def batch() -> Batch:
        ids = rng.integers(3, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
        labels = np.where(rng.random(ids.shape) < 0.7, ids, -100).astype(np.int32)
        text = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        text["attention_mask"][0, -3:] = 0
        images = rng.normal(size=(ROWS, 3, 16, 16)).astype(np.float32)
        if kind == "ForImageClassification":
            return {"pixel_values": images, "labels": classes}
        if kind == "ForSpeechSeq2Seq":
            sound = rng.normal(size=(ROWS, 8, 16)).astype(np.float32)
            return {"input_features": sound, "labels": labels}
        if kind == "ForSequenceClassification":
            return {**text, "labels": classes}
        if kind == "ForTokenClassification":
            return {**text, "labels": np.where(labels < 0, labels, labels % num_labels)}
        if kind == "":  # CLIP
            return {**text, "pixel_values": images}
        return {**text, "labels": labels}

    return [batch() for _ in range(num)]
