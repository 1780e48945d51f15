"""From a model's answer to a program that can be run: HumanEval's form."""

from __future__ import annotations

import re

_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.M | re.S)
_CODE_LINE = re.compile(
    r"(?:def|class|import|from|async def)\s|@|#|[A-Za-z_]\w*\s*(?::[^=]*)?=[^=]"
)


def code_of(text: str, entry_point: str) -> str:
    """The code in an answer: the last fenced block that defines ``entry_point``, else the first
    block of Python, else the text itself if it is code. An unclosed fence runs to the end."""
    before, fence, _ = text.partition("```")
    if fence and re.match(r"\s*(?: {2,}|\t)\S", before):
        # The fence closes a block that the prompt had opened.
        return before
    blocks = [(match[1].lower(), match[2]) for match in _FENCE.finditer(text)]
    blocks = [(name, code) for name, code in blocks if name in ("", "py", "python", "python3")]
    whole = [code for _, code in blocks if _defines(code, entry_point)]
    if whole:
        return whole[-1]
    if blocks:
        return blocks[0][1]
    return _whole(text, entry_point) if _defines(text, entry_point) else text


def program(prompt: str, answer: str, test: str, entry_point: str) -> str:
    """What is run: the prompt's own imports and helpers, the answer's code, the test, its call.

    Args:
        prompt: HumanEval's: imports, helpers, the function's head and docstring.
        answer: a whole function, or a continuation of the prompt (the function's body).

    Returns:
        the program; empty where the answer holds no code at all.
    """
    code = code_of(answer, entry_point)
    if not code.strip():
        return ""
    if _defines(code, entry_point):
        before = re.split(rf"^(?:async )?def {re.escape(entry_point)}\b", prompt, flags=re.M)[0]
        solution = before + "\n" + code
    else:
        solution = prompt.rstrip("\n") + "\n" + _body(code)
    return f"{solution}\n\n{test}\n\ncheck({entry_point})\n"


def _defines(code: str, name: str) -> bool:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.M) is not None


def _body(code: str) -> str:
    """A function's body: indented if it is not, up to the first line that is no part of it."""
    lines = code.split("\n")
    first = next(line for line in lines if line.strip())
    if not first[0].isspace():
        if len(lines) > 1 and any(line[:1].isspace() for line in lines):
            # The first line's indent was lost with the whitespace in front of the answer.
            later = [line for line in lines[lines.index(first) + 1 :] if line.strip()]
            least = min((len(line) - len(line.lstrip()) for line in later), default=0)
            if least > 0 and not first.rstrip().endswith(":"):
                return _until_outdent([" " * least + first, *lines[lines.index(first) + 1 :]])
        return "\n".join("    " + line if line.strip() else line for line in lines)
    return _until_outdent(lines)


def _until_outdent(lines: list[str]) -> str:
    kept: list[str] = []
    for line in lines:
        if line.strip() and not line[0].isspace() and not line.startswith("#"):
            break
        kept.append(line)
    return "\n".join(kept)


def _whole(text: str, entry_point: str) -> str:
    """Code in prose without a fence: from its first line up to the prose after the function."""
    lines = text.split("\n")
    head = re.compile(rf"(?:async )?def {re.escape(entry_point)}\b")
    at = next(number for number, line in enumerate(lines) if head.match(line))
    begin = at
    while begin > 0 and (not lines[begin - 1].strip() or _is_code(lines[begin - 1])):
        begin -= 1
    kept = lines[begin : at + 1]
    for line in lines[at + 1 :]:
        if line.strip() and not _is_code(line):
            break
        kept.append(line)
    return "\n".join(kept)


def _is_code(line: str) -> bool:
    return line[:1].isspace() or line[:1] in ")]}" or _CODE_LINE.match(line) is not None
