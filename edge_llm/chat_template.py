"""Renders a conversation as the text a model was trained on, with its own Jinja template.

The template comes with the model, so it runs in Jinja's sandbox: it can neither reach Python nor
change anything. What it is given are the names that Hugging Face's templates use.

    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    template.render([{"role": "user", "content": "Hello"}])
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edge_llm.errors import ArtifactError, RequestError
from edge_llm.request import Message


class Answers(Extension):
    """``{% generation %} … {% endgeneration %}`` around what is to be learned: its content."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """What stands between."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A model's chat template, compiled.

    Args:
        source: Jinja.
        bos_token: the text of the model's first token, as the template names it.
        eos_token: the text of its last.

    Raises:
        ArtifactError: the source is no Jinja template.
    """

    def __init__(self, source: str, bos_token: str, eos_token: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True,  # as Hugging Face renders, and as templates rely on
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", Answers],
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ArtifactError(
                f"chat_template.jinja: line {error.lineno}: {error.message}"
            ) from None
        except Exception as error:  # of Jinja's compiler, which a stranger's text drives
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ArtifactError(f"chat_template.jinja: {reason}") from None
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as text, ending where the assistant's answer begins.

        Raises:
            RequestError: 400, the template refuses these messages (say, two of the user's in a
                row) or fails on them.
        """
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,  # as Hugging Face says that there are none: it is not the same as
                documents=None,  # a name that is not known
                add_generation_prompt=True,
                **self._tokens,
            )
        # A template is a program; whatever it does wrong must not pass for a fault of ours.
        except Exception as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise RequestError(
                400,
                "invalid_request",
                f"the model's chat template refuses these messages: {reason}",
                "messages",
            ) from None


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(value: Any, indent: int | None = None) -> str:
    # Jinja's own filter escapes < and > for HTML, which no model was trained on.
    return json.dumps(value, ensure_ascii=False, indent=indent)
