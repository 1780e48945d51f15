"""Does this drafter fit that target? Every answer, what to do about it, and how to launch it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy.checkpoint.errors import DrafterError
from sgl_entropy.checkpoint.findings import Finding, errors_of
from sgl_entropy.checkpoint.raw_config import read_raw_config
from sgl_entropy.drafter.checkpoint import inspect_checkpoint, inspect_values, read_config
from sgl_entropy.drafter.config import (
    EAGLE3_ARCHITECTURES,
    EDSD_ARCHITECTURES,
    DrafterConfig,
    default_eagle3_layer_ids,
    highest_layer_id,
)
from sgl_entropy.target.config import TargetConfig, tokenizer_digest


@dataclass(frozen=True)
class CheckReport:
    """The outcome of ``check_drafter``.

    Attributes:
        algorithm: what to launch with; None where the drafter's config cannot be read.
        launch_command: None where there are errors.
    """

    drafter: str
    target: str
    algorithm: str | None
    findings: tuple[Finding, ...]
    launch_command: str | None

    @property
    def ok(self) -> bool:
        """No errors; warnings may be there."""
        return not errors_of(self.findings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "drafter": self.drafter,
            "target": self.target,
            "algorithm": self.algorithm,
            "findings": [finding.to_dict() for finding in self.findings],
            "launch_command": self.launch_command,
        }


def check_drafter(drafter_dir: str | Path, target_dir: str | Path) -> CheckReport:
    """Check a drafter against its target: headers, values, sizes, layers, rope, tokenizer.

    Nothing is raised for what the folders hold: problems are findings, all of them together.
    """
    findings: list[Finding] = list(inspect_checkpoint(drafter_dir))
    if not errors_of(findings):
        findings += _values(drafter_dir)
    config: DrafterConfig | None
    try:
        config = read_config(drafter_dir)
    except DrafterError:  # already among the findings
        config = _config_alone(drafter_dir)
    target: TargetConfig | None = None
    try:
        target = TargetConfig.from_folder(target_dir)
    except DrafterError as error:
        findings.append(Finding("error", "target", str(error)))
    if config is not None and target is not None:
        findings += _sizes(config, target)
        findings += _layers(config, target)
        findings += _positions(config, target)
    if target is not None:
        findings.append(_tokenizer(Path(drafter_dir), target))
    algorithm = None if config is None else config.algorithm
    command = None
    if algorithm is not None and not errors_of(findings):
        command = launch_command(drafter_dir, target_dir, algorithm)
        text = f"launch with --speculative-algorithm {algorithm}"
        findings.append(Finding("ok", "algorithm", text))
    return CheckReport(str(drafter_dir), str(target_dir), algorithm, tuple(findings), command)


def launch_command(drafter_dir: str | Path, target_dir: str | Path, algorithm: str) -> str:
    """The server's command for a chain of depth 4 (the paper's serving set-up, section 4.4)."""
    return (
        f"python -m sglang.launch_server --model-path {shlex.quote(str(target_dir))} "
        f"--speculative-algorithm {algorithm} "
        f"--speculative-draft-model-path {shlex.quote(str(drafter_dir))} "
        "--speculative-num-steps 4 --speculative-eagle-topk 1 --speculative-num-draft-tokens 5"
    )


def algorithm_mismatch(drafter_dir: str | Path, asked: str) -> str | None:
    """One line to refuse with when a drafter is started under the wrong algorithm, else None.

    Such a server would run, with acceptance length 1.00 and no error. A drafter that is neither
    EDSD's nor EAGLE-3's concerns us only when ``asked`` is EDSD.

    Raises:
        DrafterError: ``asked`` is EDSD and ``config.json`` cannot be read.
    """
    asked = asked.upper()
    try:
        architectures = read_raw_config(drafter_dir).get("architectures")
    except DrafterError:
        if asked == "EDSD":
            raise
        return None  # a hub id, or another kind of draft model: SGLang's own business
    first = architectures[0] if isinstance(architectures, list) and architectures else None
    if first in EDSD_ARCHITECTURES:
        kind, flag = "an EDSD drafter", "EDSD"
    elif first in EAGLE3_ARCHITECTURES:
        kind, flag = "an EAGLE-3 drafter", "EAGLE3"
    elif asked == "EDSD":
        return (
            f"{drafter_dir} is no EDSD drafter (architectures {architectures!r}): start it with "
            "the --speculative-algorithm it was made for"
        )
    else:
        return None
    if asked == flag:
        return None
    return (
        f"{drafter_dir} is {kind}, but --speculative-algorithm is {asked}: start it with "
        f"--speculative-algorithm {flag}"
    )


def _config_alone(folder: str | Path) -> DrafterConfig | None:
    try:
        return DrafterConfig.from_folder(folder)
    except DrafterError:
        return None


def _values(folder: str | Path) -> list[Finding]:
    text = "no NaN or infinity; every draft id leads to its own token of the vocabulary"
    return inspect_values(folder) or [Finding("ok", "values", text)]


def _sizes(config: DrafterConfig, target: TargetConfig) -> list[Finding]:
    out = []
    for name, mine, its in (
        ("hidden size", config.target_hidden_size, target.hidden_size),
        ("vocabulary", config.vocab_size, target.vocab_size),
    ):
        if mine == its:
            out.append(Finding("ok", name, f"{mine:,}, as the target's"))
        else:
            text = f"the drafter was made for {name} {mine:,}, the target has {its:,}"
            out.append(Finding("error", name, text, "use the drafter of this very target"))
    return out


def _layers(config: DrafterConfig, target: TargetConfig) -> list[Finding]:
    count = target.num_hidden_layers
    highest = highest_layer_id(count)
    ids = config.target_layer_ids
    origin = "target_layer_ids"
    if ids is None:
        ids = default_eagle3_layer_ids(count)
        origin = "SGLang's default layers"
    out_of_reach = [i for i in ids if not 0 <= i <= highest]
    if out_of_reach or list(ids) != sorted(set(ids)):
        text = (
            f"{origin} {list(ids)} on a target of {count} layers: within reach are 0 to {highest}"
        )
        fix = "choose other layers and train again; no setting can help here"
        return [Finding("error", "layers", text, fix)]
    text = f"{list(ids)} of {count} layers, within reach (0 to {highest}); fc takes {len(ids)}"
    return [Finding("ok", "layers", text)]


def _positions(config: DrafterConfig, target: TargetConfig) -> list[Finding]:
    out = []
    if config.rope_theta == target.rope_theta:
        out.append(Finding("ok", "rope", f"rope_theta {config.rope_theta:g}, as the target's"))
    else:
        text = f"rope_theta {config.rope_theta:g}, the target has {target.rope_theta:g}"
        out.append(Finding("warn", "rope", text, "right only if it was trained so"))
    if _plain(config.rope_scaling) != _plain(target.rope_scaling):
        text = f"rope_scaling {_plain(config.rope_scaling)}, the target has "
        text += str(_plain(target.rope_scaling))
        out.append(Finding("warn", "rope scaling", text, "right only if it was trained so"))
    window, context = config.max_position_embeddings, target.max_position_embeddings
    if window >= context:
        out.append(Finding("ok", "window", f"{window:,} positions, the target has {context:,}"))
    else:
        text = (
            f"the draft window of {window:,} positions is shorter than the target's context of "
            f"{context:,}: beyond it drafts are guesses and acceptance falls"
        )
        fix = f"serve with --context-length {window}, or accept the loss on long requests"
        out.append(Finding("warn", "window", text, fix))
    return out


def _plain(scaling: object) -> object:
    """``rope_scaling`` without what does not scale; None for plain rotary."""
    if not isinstance(scaling, dict):
        return scaling
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind in (None, "default"):
        return None
    kept = {k: v for k, v in scaling.items() if k not in ("type", "rope_type", "rope_theta")}
    return {"rope_type": kind, **dict(sorted(kept.items()))}


def _tokenizer(drafter: Path, target: TargetConfig) -> Finding:
    name = "tokenizer"
    try:
        mine, its = tokenizer_digest(drafter), tokenizer_digest(target.folder)
    except DrafterError as error:
        return Finding("error", name, str(error))
    if mine is None:
        text = "the drafter ships none; it must have been trained with the target's own"
        return Finding("ok", name, text)
    if its is None:
        text = "the drafter ships one, the target's folder has none to compare it with"
        return Finding("warn", name, text, "copy the target's tokenizer into its folder")
    if mine != its:
        text = "the drafter's tokenizer maps tokens to other ids than the target's"
        return Finding("error", name, text, "use the drafter of this very target")
    return Finding("ok", name, "the same token ids as the target's")
