"""Writes trl_rows.json: tokens and labels of rows, as TRL's `SFTTrainer` makes them.

pip install trl==1.16.0 transformers==5.23.0 torch
python tests/files/record_trl_rows.py
"""

import importlib.metadata
import json
import pathlib
import tempfile

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer, chat_template_utils

TEXTS = [
    "the quick brown fox jumps over the lazy dog\n",
    "what is the answer? it is 42\n",
]

CHATML = """\
{%- if tools %}{{ 'tools: ' + (tools | tojson) + '\\n' }}{% endif %}
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
        {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- generation %}
            {%- if message.reasoning_content is defined %}
                {{- '<think>' + message.reasoning_content + '</think>' }}
            {%- endif %}
            {{- message.content + '<|im_end|>\\n' }}
        {%- endgeneration %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if quiet is defined and quiet %}{{ '(quiet) ' }}{% endif %}
{%- endif %}
"""

# Answers are trimmed, and roles must alternate. Whitespace around tags is not rendered.
HEADERS = """\
{{ bos_token }}
{%- for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate') }}
    {% endif %}
    {%- if message['role'] == 'assistant' -%}
        [assistant] {% generation %}{{ message['content'] | trim }}{{ eos_token }}{% endgeneration %}
    {%- else -%}
        [{{ message['role'] }}] {{ message['content'] | trim + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}
"""  # noqa: E501


def tokenizer(special, template, **names):
    """A byte-level tokenizer as released ones; with `bos_token`, one that adds it."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    found.train_from_iterator(TEXTS * 9, trainer)
    if "bos_token" in names:
        bos = names["bos_token"]
        found.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, found.token_to_id(bos))]
        )
    loaded = PreTrainedTokenizerFast(tokenizer_object=found, **names)
    loaded.chat_template = template
    return loaded


STRINGS = [
    {"prompt": "what is the answer?", "completion": " it is 42"},
    # The end-of-document token is not appended twice.
    {"prompt": "the quick", "completion": " brown fox{eos}"},
    # Tokens merge across the border.
    {"prompt": "the bro", "completion": "wn fox"},
    {"prompt": "", "completion": "the lazy dog"},
    {"prompt": "the lazy dog", "completion": ""},
    {"prompt": "caf\u00e9 \U0001f600{eos}", "completion": "\n\u20ac 5"},
]


def turns(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [
        {"role": role, "content": content}
        for role, content in zip(roles, contents, strict=False)
    ]
    return [{"role": "system", "content": system}, *messages] if system else messages


CONVERSATIONS = [
    turns("what is the answer?", "it is 42"),
    turns("the quick", " brown fox \n", "jumps over", "the lazy dog"),
    turns("caf\u00e9 \U0001f600", "\u20ac 5", "the answer", "\U0001f600"),
    turns("a", "b"),
]
WITH_SYSTEM = [
    turns("what is the answer?", "it is 42", system="the lazy dog"),
    turns("the", "quick", "brown", "fox", "jumps", "over", system="be quick"),
]


def reasoned(key, *reasonings):
    """Answers with a reasoning under one of its names, or with null."""
    return [
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", key: reasoning},
        ]
        for reasoning in reasonings
    ]


def with_tools(template):
    """A conversation whose answers have a reasoning and call functions."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nb"},
        {"role": "user", "content": "c"},
    ]
    # The template of DeepSeek needs a null as content, which TRL removes.
    if "deepseek" not in template:
        messages += [
            {"role": "assistant", "content": "so", "tool_calls": [call, call]},
            {"role": "tool", "content": "1"},
        ]
    return [{"messages": [*messages, {"role": "assistant", "content": "it is 1"}]}]


def pairs(conversations):
    return [{"prompt": c[:-1], "completion": c[-1:]} for c in conversations]


def messages(conversations):
    return [{"messages": c} for c in conversations]


def prepared(chat, rows, **options):
    """The columns of the training set that TRL makes from rows."""
    config = LlamaConfig(
        vocab_size=len(chat), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, attn_implementation="eager",
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, bf16=False, use_cpu=True, report_to="none",
            gradient_checkpointing=False, **{"max_length": None} | options,
        )  # fmt: skip
        made = SFTTrainer(
            LlamaForCausalLM(config),
            args=args,
            train_dataset=Dataset.from_list(rows),
            processing_class=chat,
        ).train_dataset
    columns = ("input_ids", "labels", "seq_lengths")
    return {name: made[:][name] for name in columns if name in made.column_names}


def main():
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizers = {
        "chatml": tokenizer(
            chatml, CHATML, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        ),
        "headers": tokenizer(
            ["<s>", "</s>"], HEADERS, bos_token="<s>", eos_token="</s>"
        ),
    }
    folders, cases = {}, []
    for name, chat in tokenizers.items():
        with tempfile.TemporaryDirectory() as folder:
            chat.save_pretrained(folder)
            paths = sorted(pathlib.Path(folder).iterdir())
            folders[name] = {path.name: path.read_text() for path in paths}

        def record(case, rows, *, name=name, chat=chat, **options):
            made = prepared(chat, rows, **options)
            cases.append(
                {"name": case, "folder": name, "rows": rows, "options": options} | made
            )

        eos = chat.eos_token
        strings = [
            {key: text.replace("{eos}", eos) for key, text in row.items()}
            for row in STRINGS
        ]
        rows = CONVERSATIONS + (WITH_SYSTEM if name == "chatml" else [])
        record("strings", strings)
        record("strings, all tokens", strings, completion_only_loss=False)
        record("conversational pairs", pairs(rows))
        record("messages", messages(rows), assistant_only_loss=True)
        record("messages, all tokens", messages(rows))
        # Some rows are cut within an answer, and others before their first.
        cut, packed = (40, 80) if name == "chatml" else (22, 50)
        record("truncated", messages(rows), assistant_only_loss=True, max_length=cut)
        record("truncated strings", strings, max_length=8)
        for strategy in ("bfd", "bfd_split"):
            record(
                strategy,
                messages(rows) + messages(rows[::-1]),
                packing=True,
                packing_strategy=strategy,
                max_length=packed,
                assistant_only_loss=True,
            )
    chat = tokenizers["chatml"]
    for key in ("reasoning", "thinking", "reasoning_content"):
        rows = messages(reasoned(key, "why <not>", None))
        made = prepared(chat, rows, assistant_only_loss=True)
        options = {"assistant_only_loss": True}
        cases.append(
            {"name": key, "folder": "chatml", "rows": rows, "options": options} | made
        )
    # Released templates, which TRL replaces for training.
    released = tokenizer(
        [
            *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>"),
            "<\uff5cend\u2581of\u2581sentence\uff5c>",
        ],
        None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    with tempfile.TemporaryDirectory() as folder:
        released.save_pretrained(folder)
        paths = sorted(pathlib.Path(folder).iterdir())
        folders["released"] = {path.name: path.read_text() for path in paths}
    for name in ("qwen3", "qwen3_instruct_2507", "qwen2_5", "deepseek_r1_distill"):
        released.chat_template = getattr(chat_template_utils, f"{name}_chat_template")
        rows = [*messages(CONVERSATIONS[:2] + WITH_SYSTEM[1:]), *with_tools(name)]
        options = {"assistant_only_loss": True}
        cases.append(
            {"name": name, "folder": "released", "rows": rows, "options": options}
            | {"template": released.chat_template}
            | prepared(released, rows, **options)
        )
    # Characters that Jinja's own filter escapes.
    options = [
        row
        | {
            "tools": [{"name": "<add> & caf\u00e9"}],
            "chat_template_kwargs": {"quiet": True},
        }
        for row in pairs(CONVERSATIONS)
    ]
    made = prepared(chat, options)
    cases.append(
        {"name": "tools", "folder": "chatml", "rows": options, "options": {}} | made
    )
    written = {
        "trl": importlib.metadata.version("trl"),
        "transformers": importlib.metadata.version("transformers"),
        "folders": folders,
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("trl_rows.json")
    path.write_text(json.dumps(written, ensure_ascii=True) + "\n")


if __name__ == "__main__":
    main()
