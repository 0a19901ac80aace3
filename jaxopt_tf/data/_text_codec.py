"""Conversion of prompts to tokens, and of generated tokens to text."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ._chat_template import ChatTokenizer
from ._tokenize import end_of_document, load_tokenizer, token_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_END_OF_BYTES = 0  # end-of-document token of `read_text`
_NOT_UTF8 = b"\xff"  # a byte that is decoded as U+FFFD


class TextCodec(NamedTuple):
    """Functions between text and tokens.

    Attributes:
        encode: text -> tokens; may be empty.
        decode: tokens -> text, without special tokens.
        start_token_id: token that replaces an empty text; None if there is none.
        end_token_ids: tokens that end a text.
        end_names: names of these tokens in the tokenizer.
        is_chat: True if a prompt is a user message, which a chat template renders,
            and what follows it is an answer.
    """

    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    start_token_id: int | None
    end_token_ids: tuple[int, ...]
    end_names: tuple[str, ...] = ()
    is_chat: bool = False

    def encode_prompt(self, prompt: str, *, argument: str = "prompt") -> list[int]:
        """Returns the tokens of a prompt, at least one.

        An empty prompt is replaced by the token that starts a document.

        Raises:
            ValueError: if the prompt is empty and there is no such token, or the chat
                template cannot render it. `argument` is its name in the message.
            TypeError: if the prompt is not a string.
        """
        if not isinstance(prompt, str):
            raise TypeError(f"`{argument}` must be a string, got {prompt!r}.")
        if self.is_chat and not prompt:
            raise ValueError(
                f"`{argument}` must be a user message with a chat template, got "
                "''. Give the first words."
            )
        tokens = self.encode(prompt)
        if tokens:
            return tokens
        if self.start_token_id is None:
            raise ValueError(
                f"`{argument}` must be a text of at least one token, got {prompt!r}: "
                "the tokenizer has no `bos_token` to begin with. Give the first words."
            )
        return [self.start_token_id]

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """Returns the text that `new` tokens add to a prompt.

        Some tokenizers drop a space at the start of a text. The tokens of the prompt
        with its continuation are therefore decoded, and the text of the prompt is
        removed from the result.
        """
        prompt_text, full_text = self.decode(prompt), self.decode([*prompt, *new])
        return (
            full_text[len(prompt_text) :]
            if full_text.startswith(prompt_text)
            else self.decode(new)
        )


def byte_codec() -> TextCodec:
    """Returns the codec of `read_text`: a token is a byte, and 0 ends a document.

    Bytes that are not UTF-8 are decoded as U+FFFD, as are tokens above 255, which a
    larger vocabulary may have.
    """

    def decode(tokens: Sequence[int]) -> str:
        parts = (bytes([t]) if t < 256 else _NOT_UTF8 for t in tokens)
        text = b"".join(part for part in parts if part != bytes([_END_OF_BYTES]))
        return text.decode("utf-8", errors="replace")

    return TextCodec(
        encode=lambda text: list(text.encode()),
        decode=decode,
        start_token_id=_END_OF_BYTES,
        end_token_ids=(_END_OF_BYTES,),
    )


def document_codec(tokenizer: Path) -> TextCodec:
    """Returns the codec of `tokenize_text`: no special tokens are added to a prompt.

    Args:
        tokenizer: path of a `tokenizer.json`, with an end-of-document token.

    Raises:
        ValueError: if the tokenizer cannot be read or has no such token.
    """
    encoder, _ = load_tokenizer(tokenizer)
    encoder.encode_special_tokens = True  # as in the training text
    end = token_id(encoder, end_of_document(encoder, tokenizer))
    return TextCodec(
        encode=lambda text: encoder.encode(text, add_special_tokens=False).ids,
        decode=lambda tokens: encoder.decode(list(tokens), skip_special_tokens=True),
        start_token_id=end,
        end_token_ids=(end,),
        end_names=_names(encoder, (end,)),
    )


def tokenizer_codec(tokenizer: Path, *, end_token_ids: Sequence[int] = ()) -> TextCodec:
    """Returns the codec of a tokenizer of Transformers, which adds special tokens.

    Prompts become the tokens of `tokenizer(prompt)`: special tokens in the text are
    parsed, and those that the tokenizer adds, such as one at the start, are added. An
    empty prompt becomes `bos_token`.

    Args:
        tokenizer: path of a `tokenizer.json`; the special tokens are read from the
            files beside it.
        end_token_ids: tokens that end a text; none for `eos_token` of the tokenizer.

    Raises:
        ValueError: if a file cannot be read, or there is no end-of-document token.
    """
    chat = ChatTokenizer(tokenizer)
    encoder, bos = chat.tokenizer, chat.special_tokens.get("bos_token")
    ends = tuple(end_token_ids) or (token_id(encoder, chat.eos_token),)
    return TextCodec(
        encode=lambda text: encoder.encode(text).ids,
        decode=lambda tokens: encoder.decode(list(tokens), skip_special_tokens=True),
        start_token_id=None if bos is None else token_id(encoder, bos),
        end_token_ids=ends,
        end_names=_names(encoder, ends),
    )


def chat_codec(
    tokenizer: Path,
    *,
    chat_template: Path | None = None,
    system_prompt: str | None = None,
    end_token_ids: Sequence[int] = (),
) -> TextCodec:
    """Returns the codec of a chat: a prompt is a message, which a template renders.

    The tokens are those of `tokenizer.apply_chat_template` of Transformers with
    `add_generation_prompt`: no special tokens are added to the rendered text.

    Args:
        tokenizer: path of a `tokenizer.json`; special tokens and template are read from
            the files beside it.
        chat_template: file of a Jinja template that replaces that of the tokenizer.
        system_prompt: content of the system message before the prompt; None for no
            such message.
        end_token_ids: tokens that end an answer; none for `eos_token` of the tokenizer.

    Raises:
        ModuleNotFoundError: if Jinja is not installed; when a prompt is encoded.
        ValueError: if a file cannot be read, there is no end-of-document token, or,
            when a prompt is encoded, no chat template.
    """
    chat = ChatTokenizer(tokenizer, chat_template=chat_template)
    codec = tokenizer_codec(tokenizer, end_token_ids=end_token_ids)
    system = [] if system_prompt is None else [_message("system", system_prompt)]

    def encode(prompt: str) -> list[int]:
        messages = [*system, _message("user", prompt)]
        try:
            text = chat.render(messages, add_generation_prompt=True).text
        except ValueError as error:
            raise ValueError(
                f"`chat` must be used with a chat template, but {error}."
            ) from error
        return chat.tokenizer.encode(text, add_special_tokens=False).ids

    return codec._replace(encode=encode, is_chat=True)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _names(encoder: "Tokenizer", tokens: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(encoder.id_to_token(token)) for token in tokens)
