"""Chat templates of released models with {% generation %} around their answers.

Released templates render answers for inference: few of them mark where an answer starts
and ends, and some leave the reasoning of earlier answers out. For templates that TRL
knows, the text and the answers are those of its training templates.
"""

import hashlib
from typing import NamedTuple


class _Edit(NamedTuple):
    """Replacement of a part of a template; each text occurs once in it."""

    start: str  # first text of the part
    stop: str | None  # text that follows the part; None if the part is `start`
    new: str  # text that replaces the part


_START, _STOP = "{%- generation %}", "{%- endgeneration %}"
_QWEN_END = "{{- '<|im_end|>\\n' }}\n    {%- elif message.role == \"tool\" %}"
_QWEN_END_MARKED = _QWEN_END.replace("\n    ", f"\n    {_STOP}\n    ", 1)

# Every answer contains its reasoning. The released template drops the reasoning of the
# answers before the last question.
_QWEN3 = (
    _Edit(
        "{%- if loop.index0 > ns.last_query_index %}",
        "{%- if message.tool_calls %}",
        "{{- '<|im_start|>assistant\\n' }}" + _START + "{{- '<think>\\n' + "
        "reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + "
        "content.lstrip('\\n') }}",
    ),
    _Edit(_QWEN_END, None, _QWEN_END_MARKED),
)
# The line feed after the role belongs to the answer, as in TRL.
_QWEN2_5 = (
    _Edit(' or (message.role == "assistant" and not message.tool_calls)', None, ""),
    _Edit(
        "{{- '<|im_start|>' + message.role }}",
        None,
        "{{- '<|im_start|>' + message.role }}" + _START,
    ),
    _Edit(
        "{%- if message.content %}",
        None,
        "{%- if message.content or not message.tool_calls %}",
    ),
    _Edit(_QWEN_END, None, _QWEN_END_MARKED),
)
_IF_ASSISTANT = "{%- if message['role'] == 'assistant' and message['content'] is "
# The reasoning stays in every answer, and the role belongs to the answer.
_DEEPSEEK_R1_DISTILL = (
    _Edit(
        _IF_ASSISTANT + "none %}",
        None,
        _IF_ASSISTANT + "none %}" + _START,
    ),
    _Edit(
        "{%- endfor %}{%- endif %}" + _IF_ASSISTANT + "not none %}",
        None,
        "{%- endfor %}" + _STOP + "{%- endif %}" + _IF_ASSISTANT + "not none %}",
    ),
    _Edit(
        "{%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message",
        None,
        "{%- if ns.is_tool %}" + _START + "{{'<｜tool▁outputs▁end｜>' + message",
    ),
    _Edit(
        "{%- else %}{% set content = message['content'] %}",
        "{{'<｜Assistant｜>' + content",
        _STOP + "{%- else %}{% set content = message['content'] %}" + _START,
    ),
    _Edit(
        "{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}",
        None,
        _STOP + "{%- endif %}{%- endif %}{%- if message['role'] == 'tool' %}",
    ),
)
# Edits of released templates, by the SHA-256 of the template.
_EDITS = {
    "a55ee1b1660128b7098723e0abcd92caa0788061051c62d51cbe87d9cf1974d8": _QWEN3,
    "cd8e9439f0570856fd70470bf8889ebd8b5d1107207f67a5efb46e342330527f": _QWEN2_5,
    "56a1447ad31926fdc21fb07e56e5642bd9c850c4f52d8c8af7bbe5f079a84f5f": (
        _DEEPSEEK_R1_DISTILL
    ),
}


def training_template(template: str) -> str | None:
    """Returns a released template with marked answers; None for other templates.

    Source: TRL 1.16 `chat_template_utils.py`, `get_training_chat_template`.
    """
    edits = _EDITS.get(hashlib.sha256(template.encode()).hexdigest())
    if edits is None:
        return None
    for start, stop, new in edits:
        before, found, after = template.partition(start)
        assert found
        if stop is not None:
            after = after[after.index(stop) :]
        template = before + new + after
    return template
