"""Chat templates: a tokenizer's Jinja template, rendered without Transformers."""

import contextlib
import datetime
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ._tokenize import end_of_document, load_tokenizer, token_id, vocab_size_of
from ._training_templates import training_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Special tokens that templates can use, as `SPECIAL_TOKENS_ATTRIBUTES` of Transformers.
_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
    "mask_token",
)  # fmt: skip
_REASONING = ("reasoning_content", "thinking", "reasoning")
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


class Rendered(NamedTuple):
    """Text of a conversation."""

    text: str  # the whole conversation, as the template renders it
    # Start and end of each text in {% generation %}; None if the template does not have
    # this tag.
    generated: list[tuple[int, int]] | None


class ChatTokenizer:
    """Tokenizer with the special tokens and the chat template in its folder.

    Attributes:
        tokenizer: tokenizer that parses special tokens in a text, as in Transformers.
        special_tokens: texts of bos_token, eos_token and others, by name.
        eos_token: text of the token that ends an answer.
        vocab_size: upper limit of the tokens, exclusive.
        sha256: hash of tokenizer, special tokens and templates.
    """

    def __init__(self, path: Path, *, chat_template: Path | None = None):
        """Reads `tokenizer.json` and the files beside it.

        Special tokens are those of `special_tokens_map.json`, if it exists, overridden
        by those of `tokenizer_config.json`. The template is `chat_template`, or else
        `chat_template.jinja` with the files of `additional_chat_templates`, or else
        "chat_template" of `tokenizer_config.json`.

        Args:
            path: path of a `tokenizer.json`.
            chat_template: file of a Jinja template that replaces that of the tokenizer.

        Raises:
            ValueError: if a file cannot be read, or there is no end-of-document token.
        """
        self._path = path
        self.tokenizer, content = load_tokenizer(path)
        folder = path.parent
        config = read_tokenizer_config(folder)
        self.special_tokens = add_special_tokens(self.tokenizer, config)
        is_split = bool(config.get("split_special_tokens"))
        self.tokenizer.encode_special_tokens = is_split
        self.eos_token = self.special_tokens.get("eos_token") or end_of_document(
            self.tokenizer, path
        )
        self.vocab_size = vocab_size_of(self.tokenizer)
        if chat_template is None:
            self._templates = _read_templates(folder, config.get("chat_template"))
        else:
            self._templates = {
                "default": _read_text(Path(chat_template), "chat_template")
            }
        self._compiled: dict[str, Any] = {}
        settings = [self.special_tokens, self._templates, self.eos_token, is_split]
        digest = hashlib.sha256(content + json.dumps(settings, sort_keys=True).encode())
        self.sha256 = digest.hexdigest()

    @property
    def pad_token_id(self) -> int:
        """The padding token, or the end-of-document token if there is none."""
        name = self.special_tokens.get("pad_token", self.eos_token)
        return token_id(self.tokenizer, name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = False,
        is_training: bool = False,
        tools: Sequence[Any] | None = None,
        **values: Any,
    ) -> Rendered:
        """Renders a conversation as `apply_chat_template` of Transformers does.

        Args:
            messages: messages, each with a role and a content; keys whose value is None
                are removed.
            add_generation_prompt: whether to append the start of an answer.
            is_training: whether to use TRL's training version of the template, if there
                is one. It marks the answers, and keeps the reasoning in every answer.
            tools: JSON schemas of the functions that the model may call.
            **values: further variables of the template.

        Raises:
            ModuleNotFoundError: if Jinja is not installed.
            ValueError: if there is no template, or it fails.

        Source: Transformers 5.23 `utils/chat_template_utils.py`.
        """
        _jinja()
        source = self._source(tools)
        if is_training:
            source = training_template(source) or source
        generated: list[tuple[int, int]] = []
        parts: list[str] = []
        try:
            if source not in self._compiled:
                self._compiled[source] = _environment().from_string(source)
            template = self._compiled[source]
            with template.environment.tracked(parts, generated):
                # Parts are appended one by one, because `tracked` reads the position in
                # `parts`.
                for part in template.generate(
                    messages=[_prepare_message(message) for message in messages],
                    tools=tools,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **(self.special_tokens | values),
                ):
                    parts.append(part)
        # A template is a program: it can fail with any exception.
        except Exception as error:
            raise ValueError(
                f"the chat template fails: {type(error).__name__}: {error}"
            ) from error
        has_generation_tag = _GENERATION.search(source) is not None
        return Rendered("".join(parts), generated if has_generation_tag else None)

    @property
    def has_training_template(self) -> bool:
        """True if `is_training` changes the template."""
        template = self._templates.get("default")
        return template is not None and training_template(template) is not None

    def _source(self, tools: Any) -> str:
        if not self._templates:
            raise ValueError(
                f"the tokenizer {str(self._path)!r} has no chat template: neither "
                "chat_template.jinja beside it nor a template in "
                "tokenizer_config.json. Use the folder of an instruction-tuned model, "
                "or give `chat_template`"
            )
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ValueError(
                f"the tokenizer {str(self._path)!r} has no chat template of the name "
                f"'default', but {', '.join(self._templates)}. Give `chat_template`"
            )
        return self._templates[name]


def read_tokenizer_config(folder: Path) -> dict[str, Any]:
    """Returns the settings beside a `tokenizer.json`; {} if there are none.

    Raises:
        ValueError: if a file cannot be read.
    """
    config = _read_json(folder / "special_tokens_map.json")
    return config | _read_json(folder / "tokenizer_config.json")


def add_special_tokens(
    tokenizer: "Tokenizer", config: Mapping[str, Any]
) -> dict[str, str]:
    """Adds the special tokens of a configuration to a tokenizer; returns their texts.

    Args:
        tokenizer: tokenizer, changed in place.
        config: content of `tokenizer_config.json`.
    """
    from tokenizers import AddedToken

    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = {}
    for name in _SPECIAL_TOKENS:
        value = config.get(name)
        if value is None:
            continue
        options = value if isinstance(value, dict) else {"content": value}
        found[name] = options["content"]
        if found[name] not in known:
            flags = ("single_word", "lstrip", "rstrip", "normalized")
            token_options = {flag: options[flag] for flag in flags if flag in options}
            token = AddedToken(found[name], special=True, **token_options)
            tokenizer.add_special_tokens([token])
    return found


def _prepare_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Removes keys whose value is None, and stores a reasoning text under two keys.

    Some templates read `thinking`, and others `reasoning_content`.
    """
    prepared = {key: value for key, value in message.items() if value is not None}
    reasoning = next((prepared[key] for key in _REASONING if key in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    return prepared


def _read_templates(folder: Path, in_config: Any) -> dict[str, str]:
    """Returns the templates of a folder by name; files replace those of the config."""
    found = {}
    if (folder / "chat_template.jinja").is_file():
        found["default"] = _read_text(folder / "chat_template.jinja", "tokenizer")
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        found[path.stem] = _read_text(path, "tokenizer")
    if found or in_config is None:
        return found
    if isinstance(in_config, str):
        return {"default": in_config}
    if isinstance(in_config, list):
        return {template["name"]: template["template"] for template in in_config}
    return dict(in_config)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(_read_text(path, "tokenizer")))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"`tokenizer` must be in a folder with valid files, but {str(path)!r} is "
            f"not valid JSON: {error}. Save the tokenizer again."
        ) from error


def _read_text(path: Path, argument: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"`{argument}` must be a text file that can be read, but {str(path)!r} "
            f"cannot: {error}. Check the path."
        ) from error


def _jinja() -> Any:
    # Imported here because only conversations need the library.
    try:
        import jinja2.ext
        import jinja2.sandbox
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "jinja2 must be installed to render chat templates. Install it with "
            "`pip install jinja2`.",
            name=error.name,
        ) from error
    return jinja2


def _environment() -> Any:
    """Returns a Jinja environment with the names that templates expect.

    A template is an untrusted program. The sandbox prevents access to Python's
    internals, and data are immutable in it.
    """
    jinja2 = _jinja()

    class Generation(jinja2.ext.Extension):  # type: ignore[name-defined]  # untyped
        """The tag {% generation %}, which records the position of its text."""

        tags = {"generation"}  # noqa: RUF012 - a class attribute in Jinja

        def __init__(self, environment: Any):
            super().__init__(environment)  # type: ignore[no-untyped-call]  # of Jinja
            environment.extend(tracked=self.tracked)
            self._parts: list[str] = []
            self._found: list[tuple[int, int]] = []

        @contextlib.contextmanager
        def tracked(self, parts: list[str], found: list[tuple[int, int]]) -> Any:
            self._parts, self._found = parts, found
            yield

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_record")
            return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _record(self, caller: Any) -> str:
            text = caller()
            start = sum(map(len, self._parts))
            self._found.append((start, start + len(text)))
            return text

    def fail(message: str) -> None:
        raise jinja2.TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Jinja's own filter escapes the characters of HTML.
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = fail
    environment.globals["strftime_now"] = lambda format_: (
        datetime.datetime.now().strftime(format_)
    )
    return environment
