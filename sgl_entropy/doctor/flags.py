"""A launch command's flags, parsed by SGLang's own definitions without importing SGLang."""

from __future__ import annotations

import argparse
import ast
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NoReturn

_TYPES = {"int": int, "float": float, "str": str}


@dataclass(frozen=True)
class LaunchFlags:
    """The flags that the checks read, named and by default as in SGLang; None = not given.

    ``count``: how many flags the command gives, these or others.
    """

    count: int = 0
    model_path: str | None = None
    config: str | None = None
    host: str = "127.0.0.1"
    port: int = 30000
    device: str | None = None
    attention_backend: str | None = None
    sleep_on_idle: bool = False
    page_size: int = 1
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    quantization: str | None = None
    enable_lora: bool = False
    lora_paths: Sequence[str] = ()
    enable_mixed_chunk: bool = False
    speculative_algorithm: str | None = None
    speculative_draft_model_path: str | None = None
    speculative_token_map: str | None = None
    speculative_num_steps: int | None = None
    speculative_eagle_topk: int | None = None
    speculative_num_draft_tokens: int | None = None
    speculative_accept_threshold_single: float = 1.0
    speculative_accept_threshold_acc: float = 1.0

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> LaunchFlags:
        """From what ``parse_flags`` returns."""
        known = {each.name for each in fields(cls)} - {"count"}
        read = {name: value for name, value in given.items() if name in known}
        return cls(count=len(given), **read)


class FlagError(ValueError):
    """The flags cannot be read; the message says which one and why."""


def split_command(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """(variables, flags) of ``[NAME=VALUE ...] [python -m sglang.launch_server] --flag ...``."""
    words = list(words)
    variables: dict[str, str] = {}
    while words and not words[0].startswith("-") and "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    for index, word in enumerate(words):
        if word == "sglang.launch_server":
            return variables, words[index + 1 :]
    return variables, words


def split_text(text: str) -> list[str]:
    """The words of a command line given as one string.

    Raises:
        FlagError: an open quote.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise FlagError(f"--flags {text!r}: {error}") from None


def parse_flags(root: Path, words: Sequence[str]) -> dict[str, Any]:
    """The flags that the command gives: destination -> value, nothing for the others.

    Args:
        root: SGLang's package folder; its ``server_args.py`` defines the flags.

    Raises:
        FlagError: an unknown flag, a value that it does not take, or no definitions.
    """
    parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS, prog="launch_server")
    source = root / "srt" / "server_args.py"
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (OSError, SyntaxError) as error:
        raise FlagError(f"{source} cannot be read: {error}") from None
    choices = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        if node.func.attr == "add_argument":
            _add(parser, node, choices)
    if len(parser._option_string_actions) == 0:
        raise FlagError(f"{source} defines no flags")
    return vars(parser.parse_args(list(words)))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FlagError(message)


def _add(parser: _Parser, call: ast.Call, named: dict[str, ast.expr]) -> None:
    """Repeat one ``add_argument`` call with those of its arguments that are literals."""
    strings = [str(arg.value) for arg in call.args if isinstance(arg, ast.Constant)]
    if not strings or any(s in parser._option_string_actions for s in strings):
        return
    kept: dict[str, Any] = {}
    for keyword in call.keywords:
        value = keyword.value
        if keyword.arg == "choices" and isinstance(value, ast.Name):
            value = named.get(value.id, value)
        if keyword.arg == "type":
            known = _TYPES.get(value.id) if isinstance(value, ast.Name) else None
            if known is not None:
                kept["type"] = known
        elif keyword.arg in ("action", "choices", "nargs", "const", "dest", "required"):
            try:
                kept[keyword.arg] = ast.literal_eval(value)
            except ValueError:
                continue
    # An action class of SGLang's own is no literal: such a flag keeps its text as the value.
    parser.add_argument(*strings, **kept)
