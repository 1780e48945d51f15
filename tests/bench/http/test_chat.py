"""Chat templates rendered as transformers renders them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sgl_entropy_bench.http.chat import ChatTemplate

MESSAGES = [
    {"role": "system", "content": "Be brief. Café <b>"},
    {"role": "user", "content": "  Two\nlines "},
]
# Blocks on lines of their own, as in published templates: only trimming makes this right.
TEMPLATE = """{%- if messages[0]['role'] == 'assistant' %}
  {{ raise_exception('an assistant cannot begin') }}
{%- endif %}
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '<|sys|>' + message['content'] | trim + '\n' }}
    {%- else %}
        {{- '<|usr|>' + message['content'] + '\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|bot|>' }}
{%- endif %}"""


def folder(path: Path, config: dict[str, object]) -> Path:
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


def test_renders_as_transformers_does(tmp_path: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    folder(tmp_path, {"chat_template": TEMPLATE, "bos_token": {"content": "<s>"}})
    ours = ChatTemplate(tmp_path).render(MESSAGES)
    theirs, _ = render_jinja_template(
        [MESSAGES], chat_template=TEMPLATE, add_generation_prompt=True, bos_token="<s>"
    )
    assert ours == theirs[0]
    assert ours == "<s><|sys|>Be brief. Café <b>\n<|usr|>  Two\nlines \n<|bot|>"


def test_a_separate_file_comes_first(tmp_path: Path) -> None:
    folder(tmp_path, {"chat_template": "old"})
    (tmp_path / "chat_template.jinja").write_text("new")
    assert ChatTemplate(tmp_path).render(MESSAGES) == "new"


def test_a_refused_conversation_is_told(tmp_path: Path) -> None:
    folder(tmp_path, {"chat_template": TEMPLATE})
    with pytest.raises(ValueError, match="an assistant cannot begin"):
        ChatTemplate(tmp_path).render([{"role": "assistant", "content": "hi"}])


def test_no_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no tokenizer_config\.json"):
        ChatTemplate(tmp_path)
    with pytest.raises(ValueError, match="no chat template"):
        ChatTemplate(folder(tmp_path, {}))
