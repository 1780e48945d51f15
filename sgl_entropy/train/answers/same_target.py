"""Whether a server serves the target: checked before a budget of answers goes to another model.

SGLang reports the paths that it was started with. On the same machine their files are compared; on
another, only names and architecture can be. If these say nothing, one line tells the user, and the
stage that reads the answers compares them with the target's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sgl_entropy.target.config import read_target_config, tokenizer_digest
from sgl_entropy.target.fingerprint import target_fingerprint
from sgl_entropy.train.answers.from_server import Ask
from sgl_entropy.train.prompts.order import Prompt
from sgl_entropy.train.workspace import Workspace

Report = Callable[[str], None]


def refuse_other_server(info: Mapping[str, Any], target: Path, url: str, report: Report) -> None:
    """
    Args:
        info: the replies of ``/get_model_info`` and ``/get_server_info``, merged.
        url: of the server, for the message.

    Raises:
        ValueError: it serves another model, or another tokenizer with it.
    """
    served, problem = str(info.get("model_path") or ""), other_target(info, target)
    if problem:
        raise ValueError(
            f"{url} does not serve the target {target}: {problem}. Start it with --model-path "
            f"{target}, or give train what it serves (--target)"
        )
    if not comparable(info, target):
        report(
            f"{url} serves {served or 'a model that it does not name'}, which cannot be compared "
            f"with {target} from here; `train features`, or `fit`, will compare its answers"
        )


def other_target(info: Mapping[str, Any], target: Path) -> str | None:
    """How the served model, or its tokenizer, differs from ``target``; None = not seen to."""
    served = str(info.get("model_path") or "")
    return _other_model(info, served, target) or _other_tokenizer(info, served, target)


def comparable(info: Mapping[str, Any], target: Path) -> bool:
    """Whether the weights, or at least the names, show that ``target`` is served."""
    served = str(info.get("model_path") or "")
    return weights_here(served) or Path(served).name.lower() == target.resolve().name.lower()


def within_vocabulary(ask: Ask, work: Workspace) -> Ask:
    """``ask``, refusing answers with tokens that the target does not have."""
    size = work.vocab_size

    def checked(prompt: Prompt) -> Sequence[int]:
        answer = ask(prompt)
        if answer and not 0 <= min(answer) <= max(answer) < size:
            raise ValueError(
                f"the server answers prompt {prompt.prompt_id} with token {max(answer)}, and "
                f"{work.target} has {size:,}: it serves another model"
            )
        return answer

    return checked


def _other_model(info: Mapping[str, Any], served: str, target: Path) -> str | None:
    config = read_target_config(target)
    for key in ("model_type", "architectures"):
        told, own = info.get(key), config.get(key)
        if told and own and told != own:
            return f"its {key} is {told}, the target's {own}"
    if not weights_here(served) or Path(served).resolve() == target.resolve():
        return None
    if target_fingerprint(Path(served)) != target_fingerprint(target):
        return f"it serves {served}, whose weights or config are others"
    return None


def _other_tokenizer(info: Mapping[str, Any], served: str, target: Path) -> str | None:
    """Prompts are sent as token ids, but the server's tokenizer decides where an answer ends."""
    named = str(info.get("tokenizer_path") or served)
    if not Path(named).is_dir() or Path(named).resolve() == target.resolve():
        return None
    told, own = tokenizer_digest(named), tokenizer_digest(target)
    if told and own and told != own:
        return f"its tokenizer {named} has another vocabulary"
    return None


def weights_here(served: str) -> bool:
    """Whether the folder ``served`` with its weights is on this machine."""
    folder = Path(served)
    return (
        folder.is_absolute()
        and (folder / "config.json").is_file()
        and bool(next(folder.glob("*.safetensors"), None))
    )
