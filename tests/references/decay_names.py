"""Parameters that Trainer decays, for randomly initialized models."""

_SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

# Maps class names to options that make the model small.
ARCHITECTURES = {
    "BertModel": _SMALL | {"vocab_size": 50},
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50},
    "T5ForConditionalGeneration": {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 2,
        "num_heads": 2,
        "vocab_size": 50,
    },
    "LlamaForCausalLM": _SMALL | {"num_key_value_heads": 2, "vocab_size": 50},
    "ViTModel": _SMALL | {"image_size": 8, "patch_size": 4},
    "CLIPModel": {
        "projection_dim": 16,
        "text_config": _SMALL | {"vocab_size": 50},
        "vision_config": _SMALL | {"image_size": 8, "patch_size": 4},
    },
    "Dinov2Model": _SMALL | {"image_size": 8, "patch_size": 4},
}


def trainer_decay_names(architecture):
    """Returns all names, paths of LayerNorms, and names that Trainer decays."""
    import torch
    import transformers

    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**ARCHITECTURES[architecture])
    with torch.device("meta"):
        model = model_class(config)
    names = [name for name, _ in model.named_parameters()]
    layer_norms = [
        path for path, m in model.named_modules() if isinstance(m, torch.nn.LayerNorm)
    ]
    # The method does not use the trainer itself.
    decayed = transformers.Trainer.get_decay_parameter_names(None, model)
    return names, layer_norms, set(decayed) & set(names)
