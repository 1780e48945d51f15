"""A target's chat template, rendered without its tokenizer.

``/generate`` takes plain text. To send it the same text that ``/v1/chat/completions`` makes of
messages, the template in the target's folder is rendered here. Templates are Jinja written for
transformers' sandbox (trimmed blocks, ``raise_exception``), which this reproduces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = Mapping[str, str]


class ChatTemplate:
    """The chat template in a Hugging Face folder.

    Raises ValueError where the folder has none, or where it cannot render a conversation.
    """

    def __init__(self, target: Path) -> None:
        config_file = target / "tokenizer_config.json"
        if not config_file.is_file():
            raise ValueError(f"{target} is no target: it has no tokenizer_config.json")
        config: dict[str, Any] = json.loads(config_file.read_text())
        separate = target / "chat_template.jinja"
        source = separate.read_text() if separate.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            raise ValueError(
                f"{target} has no chat template (chat_template in tokenizer_config.json, or "
                "chat_template.jinja); use an instruction-tuned target"
            )
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        environment.filters["tojson"] = lambda value, **options: json.dumps(
            value, ensure_ascii=False, **options
        )
        self._template = environment.from_string(source)
        self._tokens = {
            name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt's text, up to where the assistant begins to write."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                **self._tokens,
            )
        except TemplateError as error:
            raise ValueError(f"the target's chat template refuses the messages: {error}") from error


def _content(token: Any) -> str:
    """A special token in a tokenizer's config: a string, or an object with ``content``."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
