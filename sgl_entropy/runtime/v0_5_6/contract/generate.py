"""Write down every use that we make of SGLang: ``python -m ...contract.generate [--check]``.

Our modules and the lines of the patches are read, and SGLang's released sources say what each use
has to look like; nothing of SGLang is imported. Run it where that release is installed, after
every change of what we use; a test compares.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping
from pathlib import Path

import sgl_entropy
from sgl_entropy import patching
from sgl_entropy.hostapi.inference import Inference
from sgl_entropy.hostapi.scan import Program, Scan
from sgl_entropy.hostapi.sources import SourceTree
from sgl_entropy.hostapi.uses import Use, calls, dump_uses, has
from sgl_entropy.patching.state import survey, upstream_contents
from sgl_entropy.patching.verbs import patched_contents
from sgl_entropy.runtime.v0_5_6.contract.table import USES_FILE

_ROOT = Path(sgl_entropy.__file__).parent
_ROOMS = ("runtime/v0_5_6", "serving")
_SPEC = "sglang.srt.speculative"
_POOLS = "sglang.srt.mem_cache.memory_pool"

# A field that is annotated with the first holds one of the others.
_NARROWED = {
    f"{_SPEC}.spec_info:SpecInput": (
        f"{_SPEC}.eagle_info:EagleDraftInput",
        f"{_SPEC}.eagle_info:EagleVerifyInput",
    ),
    f"{_POOLS}:KVCache": (f"{_POOLS}:MHATokenToKVPool",),
}
# SGLang's worker calls on ours what it calls on its own drafter.
_STANDS_FOR = {"EdsdDraftModel": "sglang.srt.models.llama_eagle3:LlamaForCausalLMEagle3"}

# What no source shows, each with its reason.
_BY_HAND: tuple[Use, ...] = (
    # Its keyword arguments are SGLang's scheduler's, which create_worker hands on as **kwargs.
    *calls(
        f"{_SPEC}.eagle_worker:EAGLEWorker",
        *("server_args=", "gpu_id=", "tp_rank=", "dp_rank=", "moe_ep_rank=", "nccl_port="),
        "target_worker=",
        by="worker",
    ),
    # The target is an object of any model's class; this is the tested family's.
    *calls(
        "sglang.srt.models.llama:LlamaForCausalLM.set_eagle3_layers_to_capture",
        "layer_ids",
        by="the patches of feature taps",
    ),
    # Stands before those patches' lines, and is true for EDSD by the flags it registers with.
    *calls(f"{_SPEC}.spec_info:SpeculativeAlgorithm.is_eagle3", by="the patches of feature taps"),
    # RMSNorm.forward takes anything and calls this.
    *calls("sglang.srt.layers.layernorm:RMSNorm.forward_native", "x", "residual", by="models"),
    # Reads the dictionary that the patch puts our backend into.
    *has(
        f"{_SPEC}.draft_utils:DraftBackendFactory._create_backend", by="the patches of draft_utils"
    ),
    # Makes an object of what add_cli_args has defined, our flags too.
    *calls(
        "sglang.srt.server_args:ServerArgs.from_cli_args", "args", by="the patches of server_args"
    ),
)


def generate() -> tuple[Use, ...]:
    """Every use, read from our sources and those of the installed release, patched or not.

    Raises:
        PatchError: SGLang is not installed, or is no release that we patch.
        ValueError: an attribute of SGLang's is used that its release does not define.
    """
    install = patching.find_sglang()
    series = patching.load_series(install.version)
    upstream = upstream_contents(install, series, survey(install, series))
    patched = {n: d for n, d in patched_contents(series, upstream).items() if d is not None}
    before = _texts(upstream)
    after = _texts(patched)
    host = SourceTree(install.root, "sglang", before)
    scan = Scan(
        host,
        Program(
            ours=tuple(sorted(_modules())),
            patched={name: _added(before.get(name, ""), text) for name, text in after.items()},
            stands_for=_STANDS_FOR,
            prefixes=("sgl_entropy.runtime.v0_5_6.", "sgl_entropy."),
        ),
        Inference(
            SourceTree(install.root, "sglang", after),
            SourceTree(_ROOT, "sgl_entropy"),
            narrowed=_NARROWED,
        ),
    )
    uses = {*scan.run(), *_BY_HAND}
    if scan.unknown:
        unknown = [f"{where} has no {name}" for where, name in sorted(scan.unknown.items())]
        raise ValueError("not defined by SGLang, or wrongly annotated:\n" + "\n".join(unknown))
    return tuple(sorted(uses, key=lambda use: use.order))


def _modules() -> set[str]:
    files = {file for room in _ROOMS for file in (_ROOT / room).rglob("*.py")}
    names = (file.relative_to(_ROOT.parent).with_suffix("").parts for file in files)
    modules = {".".join(name).removesuffix(".__init__") for name in names}
    return {name for name in modules if ".contract" not in name}


def _texts(contents: Mapping[str, bytes | None]) -> dict[str, str]:
    """Module -> source, of files by their path."""
    return {
        name.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): data.decode()
        for name, data in contents.items()
        if data is not None
    }


def _added(before: str, after: str) -> frozenset[int]:
    """Numbers of the lines that the patches add."""
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    return frozenset(
        line + 1
        for kind, _, _, start, end in matcher.get_opcodes()
        if kind in ("insert", "replace")
        for line in range(start, end)
    )


def main() -> int:
    """Write the file; with ``--check`` only compare, 1 where it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare and write nothing")
    text = dump_uses(generate())
    if parser.parse_args().check:
        return int(USES_FILE.read_text(encoding="utf-8") != text)
    USES_FILE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
