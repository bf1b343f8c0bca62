"""Text to token ids and back, with the tokenizer and the chat template inside the artifact.

A user's text is text: where a message of a chat contains what looks like a control token
(``<|im_end|>``), its characters are encoded, never the token. Control tokens come from the chat
template alone. Only a raw prompt, whose author plays the template's part, may contain them.

    tokenizer.encode("The capital of France is")                      # raw
    tokenizer.chat([{"role": "user", "content": "What is <|im_end|>?"}])
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated

from tokenizers import Tokenizer as HFTokenizer

from edge_llm import schema
from edge_llm.artifact import Artifact
from edge_llm.errors import ArtifactError, RequestError
from edge_llm.request import Message, Request
from edge_llm.schema import Length, Range
from edge_llm.token_bytes import TokenBytes

if TYPE_CHECKING:
    from edge_llm.chat_template import ChatTemplate

TokenId = Annotated[int, Range(0, 2**31 - 1)]


@dataclass(frozen=True)
class Generation:
    """generation.json: how the model begins and ends a text.

    Attributes:
        bos_token_id: the token that begins one, if there is one.
        eos_token_ids: each of them ends an answer.
        add_bos: a text that is no chat begins with it; a chat template writes its own.
        bos_token: its text, as the chat template names it.
        eos_token: likewise.
    """

    bos_token_id: TokenId | None
    eos_token_ids: Annotated[tuple[TokenId, ...], Length(64)]
    add_bos: bool
    bos_token: str
    eos_token: str


class Tokenizer:
    """An artifact's tokenizer; safe to use from several threads.

    Args:
        tokenizer_json: of the Hugging Face ``tokenizers`` library.
        generation_json: see :class:`Generation`.
        chat_template: Jinja, or None for a model that does not chat.

    Attributes:
        hf: the ``tokenizers.Tokenizer`` itself.
        generation: how the model begins and ends a text.

    Raises:
        ArtifactError: the first two cannot be read or are of a kind not supported.
    """

    def __init__(
        self, tokenizer_json: bytes, generation_json: bytes, chat_template: str | None
    ) -> None:
        try:
            self.hf: HFTokenizer = HFTokenizer.from_buffer(tokenizer_json)
        except Exception as error:  # the library raises no narrower class
            raise ArtifactError(f"tokenizer.json: {_line(error)}") from None
        self.hf.no_truncation()  # some files carry the limits of a training run
        self.hf.no_padding()
        try:
            self.generation = schema.build(Generation, schema.load(generation_json))
        except ArtifactError as error:
            raise ArtifactError(f"generation.json: {error}") from None
        self._template_source = chat_template
        self._spelled = self._spell_control_tokens()
        self._control = re.compile(
            "|".join(re.escape(token) for token in sorted(self._spelled, key=len, reverse=True))
        )
        self._token_bytes = TokenBytes(self.hf)

    @classmethod
    def of(cls, artifact: Artifact) -> Tokenizer:
        """The tokenizer that an artifact contains."""
        template = None
        if "chat_template.jinja" in artifact:
            template = bytes(artifact.entry("chat_template.jinja")).decode(errors="replace")
        return cls(
            bytes(artifact.entry("tokenizer.json")),
            bytes(artifact.entry("generation.json")),
            template,
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a raw text, control tokens in it included, after a BOS where the model wants one.

        The result is that of the ``tokenizers`` library.
        """
        ids = self._encode(text)
        bos = self.generation.bos_token_id
        if self.generation.add_bos and bos is not None and ids[:1] != [bos]:
            ids.insert(0, bos)
        return ids

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, up to where the assistant's answer begins.

        Raises:
            RequestError: 400, the model has no chat template or it refuses these messages; 500,
                it is no template.
        """
        # While the template runs, two surrogates stand for each control token in a message: code
        # points that are no characters, so no message has them (Request refuses them).
        found: list[str] = []

        def mark(match: re.Match[str]) -> str:
            found.append(match[0])
            return _mark(len(found) - 1)

        if self._spelled:
            messages = [
                {**message, "content": self._control.sub(mark, message["content"])}
                for message in messages
            ]
        return list(self._encode_marked(self._template.render(messages), found))

    def _encode_marked(self, text: str, found: list[str]) -> Iterator[int]:
        """Ids of a rendered text, where marks stand for the characters of control tokens."""
        marks = {_mark(number): token for number, token in enumerate(found)}
        for part in re.split("([\ud800-\udfff]{2})", text):
            if part in marks:
                yield from self._spelled[marks[part]]
            else:  # a mark that the template took apart becomes question marks
                yield from self._encode(part.encode(errors="replace").decode())

    def prompt(self, request: Request) -> list[int]:
        """Ids of what a request asks: raw, or through the chat template where there is one."""
        if request.messages is not None:
            return self.chat(request.messages)
        assert request.prompt is not None  # Request has one of the two
        if request.raw or self._template_source is None:
            return self.encode(request.prompt)
        return self.chat(({"role": "user", "content": request.prompt},))

    @cached_property  # a long prompt asks for it, and most starts see none
    def longest_token(self) -> int:
        """Bytes of the longest token, or a few more."""
        return max(len(token.encode()) for token in self.hf.get_vocab(with_added_tokens=True))

    def decoder(self) -> Callable[[int], bytes]:
        """A function that turns the ids of one answer, one after the other, into UTF-8."""
        return self._token_bytes.decoder()

    @cached_property
    def _template(self) -> ChatTemplate:
        from edge_llm.chat_template import ChatTemplate  # Jinja: only chats wait for it

        if self._template_source is None:
            raise RequestError(
                400,
                "invalid_request",
                "this model has no chat template: send a prompt instead of messages",
                "messages",
            )
        names = self.generation.bos_token, self.generation.eos_token
        try:
            return ChatTemplate(self._template_source, *names)
        except ArtifactError as error:
            raise RequestError(500, "model_error", str(error)) from None

    def _encode(self, text: str) -> list[int]:
        return list(self.hf.encode(text, add_special_tokens=False).ids)

    def _spell_control_tokens(self) -> dict[str, list[int]]:
        """The text of every control token to the ids of its characters."""
        added = self.hf.get_added_tokens_decoder()  # id to AddedToken
        special = {token.content: i for i, token in added.items() if token.special}
        self.hf.encode_special_tokens = True  # as text
        spelled = {
            text: [i for i in self._encode(text) if i not in special.values()]
            for text in special
            if text
        }
        self.hf.encode_special_tokens = False
        return spelled


def _mark(number: int) -> str:
    return chr(0xD800 + number // 2048) + chr(0xD800 + number % 2048)


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
