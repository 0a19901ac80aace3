"""Conversion of prompts to the tokens that the model of a run or a folder expects."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .._io import read_json_object
from ..data import (
    TextCodec,
    byte_codec,
    chat_codec,
    document_codec,
    form_of_rows,
    is_pretokenized,
    tokenizer_codec,
)
from ._job import Job

_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Settings of prompts that replace those of the run or the folder.

    Attributes:
        tokenizer: path of a tokenizer.json.
        chat: whether the chat template renders the prompt; None for the form of the
            rows that the run was trained on, and False for a folder of Transformers.
        chat_template: file of a Jinja template.
        system_prompt: system message before the prompt.

    Raises:
        ValueError: if `chat_template` or `system_prompt` is given and `chat` is False.
    """

    tokenizer: Path | None = None
    chat: bool | None = None
    chat_template: Path | None = None
    system_prompt: str | None = None

    def __post_init__(self) -> None:
        """Checks that settings of a chat are used."""
        for name in ("chat_template", "system_prompt"):
            value = getattr(self, name)
            if value is not None and self.chat is False:
                raise ValueError(
                    f"`{name}` must be left out without `chat`, got {str(value)!r}. "
                    "Leave it out: the prompt is continued as it is."
                )

    def is_chat(self, default: bool) -> bool:
        """Returns `chat`; given settings of a chat imply it."""
        if self.chat is not None:
            return self.chat
        is_given = self.chat_template is not None or self.system_prompt is not None
        return default or is_given


def codec_of_run(job: Job, folder: Path | None, given: PromptSettings) -> TextCodec:
    """Returns the codec for prompts of a run.

    - Runs on messages: the chat template renders the prompt, and the answer follows.
    - Runs on prompts and completions, and runs that started from a model's weights: the
      tokens of `tokenizer(prompt)` in Transformers, with its special tokens.
    - Other runs: the tokens of the text alone, as in the documents of the run.

    Args:
        job: settings of the run.
        folder: folder of the run; None before it is known.
        given: settings that replace those of the run.

    Raises:
        ValueError: if there is no tokenizer, or it cannot be read.
    """
    form = None if folder is None else form_of_rows(folder)
    path = given.tokenizer or _tokenizer_of(job, folder)
    if path is None:
        _refuse_chat_of_bytes(job, given)
        return byte_codec()
    has_weights = job.model_name_or_path is not None and not job.from_scratch
    is_chat = given.is_chat(form == "chat")
    if form is None and not has_weights and not is_chat:
        return document_codec(path)
    ends: dict[int, str] = {}
    plain = [tokenizer_codec(path, end_token_ids=_ends_of_model(job, folder))]
    plain.append(tokenizer_codec(path))  # eos_token of the tokenizer
    if form is None:
        plain.append(document_codec(path))
    for codec in plain:
        ends |= dict(zip(codec.end_token_ids, codec.end_names, strict=True))
    if not is_chat:
        return tokenizer_codec(path, end_token_ids=tuple(ends))
    return _chat(path, given, job.chat_template, tuple(ends))


def codec_of_folder(folder: Path, given: PromptSettings) -> TextCodec:
    """Returns the codec for prompts of a folder of Transformers.

    Text ends at `eos_token_id` of generation_config.json, or else of config.json.

    Raises:
        ValueError: if there is no tokenizer, or it cannot be read.
    """
    path = given.tokenizer or folder / _TOKENIZER
    if not path.is_file():
        raise ValueError(
            f"`tokenizer` must be the path of a tokenizer.json, but {str(path)!r} does "
            "not exist. Save it there with `tokenizer.save_pretrained`, or name "
            "another one."
        )
    ends = _end_token_ids(folder)
    if given.is_chat(False):
        return _chat(path, given, None, ends)
    return tokenizer_codec(path, end_token_ids=ends)


def _chat(
    path: Path,
    given: PromptSettings,
    chat_template: Path | None,
    end_token_ids: tuple[int, ...],
) -> TextCodec:
    # A run copies its template to its folder as the template of the tokenizer.
    if chat_template is not None and not chat_template.is_file():
        chat_template = None
    return chat_codec(
        path,
        chat_template=given.chat_template or chat_template,
        system_prompt=given.system_prompt,
        end_token_ids=end_token_ids,
    )


def _tokenizer_of(job: Job, folder: Path | None) -> Path | None:
    """Returns the tokenizer of a run, or its copy if it no longer exists."""
    if job.tokenizer is None or job.tokenizer.is_file() or folder is None:
        return job.tokenizer
    copy = folder / _TOKENIZER
    return copy if copy.is_file() else job.tokenizer


def _refuse_chat_of_bytes(job: Job, given: PromptSettings) -> None:
    """Raises unless the text of a run without a tokenizer is bytes, and no chat."""
    ready = [path for path in job.text if is_pretokenized(path)]
    if ready:
        raise ValueError(
            "`tokenizer` must be given for a run with pretokenized files, such as "
            f"{str(ready[0])!r}, to encode the prompt. Pass the tokenizer.json that "
            "they were made with; `sample_prompt` must be left out."
        )
    if given.is_chat(False):
        raise ValueError(
            "`chat` must be left out for a run on bytes, which has no tokenizer and no "
            "chat template. Leave it out, or give a `tokenizer`."
        )


def _ends_of_model(job: Job, folder: Path | None) -> tuple[int, ...]:
    for path in (job.model_name_or_path, folder):
        if path is not None and (path / _CONFIG).is_file():
            return _end_token_ids(path)
    return ()


def _end_token_ids(folder: Path) -> tuple[int, ...]:
    return tuple(_read_end_token_ids(folder))


def _read_end_token_ids(folder: Path) -> Iterator[int]:
    """Yields `eos_token_id` of generation_config.json, or else of config.json."""
    for name in ("generation_config.json", _CONFIG):
        if (folder / name).is_file():
            found = read_json_object(folder / name, "folder").get("eos_token_id")
            if found is not None:
                yield from map(int, found if isinstance(found, list) else [found])
                return
