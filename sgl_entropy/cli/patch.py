"""``sgl-entropy patch``: apply, check or revert the patch series on an installed SGLang."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from sgl_entropy import patching
from sgl_entropy.cli.actions import Action, add_actions, run_action
from sgl_entropy.cli.output import write_json
from sgl_entropy.patching import manifest

_EPILOG = """examples:
  sgl-entropy patch apply                      the SGLang that this Python would import
  sgl-entropy patch status --json -            {"state": "applied", "files": {...}, ...}
  sgl-entropy patch verify                     exit code 0 only if all is applied and intact
  sgl-entropy patch revert --sglang ./unpacked byte-identical files again

exit codes: 0 done; 1 verify found something wrong; 2 an error, nothing was changed.
Neither git nor an import of SGLang is needed. A run that fails undoes what it did; what a killed
run left half-done is undone by the next run of any of these."""

_RECORD_EPILOG = """examples:
  sgl-entropy patch record --upstream ./unpacked
  sgl-entropy patch record --upstream ./unpacked --series patches/v0.5.6.post2"""

Act = Callable[[patching.SglangInstall, patching.Series], patching.PatchReport]


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of ``patch``."""
    parser.epilog = _EPILOG
    add_actions(parser, ACTIONS)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sglang",
        metavar="DIR",
        help="the package folder of SGLang, or a folder that contains it, such as an unpacked "
        "wheel (default: the one that this Python would import)",
    )
    parser.add_argument("--json", metavar="FILE", help="write the outcome there; - for stdout")
    parser.add_argument(
        "--quiet", action="store_true", help="print one line; name files only on a fault"
    )


def _record_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--upstream", metavar="DIR", required=True, help="a pristine SGLang")
    parser.add_argument(
        "--series",
        metavar="DIR",
        type=Path,
        help="folder of the patches (default: the shipped one for the version of --upstream)",
    )


def run(args: argparse.Namespace) -> int:
    """Do it and print; returns the exit code."""
    patching.check_python()
    return run_action(args)


def _run(act: Act, args: argparse.Namespace) -> int:
    try:
        install = patching.find_sglang(args.sglang)
        report = act(install, patching.load_series(install.version))
    except patching.PatchError as error:
        if args.json:
            failure = {"verb": args.action, "error": str(error), "files": error.files}
            write_json(failure, args.json)
        raise
    if args.json:
        write_json(report.as_json(), args.json)
    if args.json != "-":
        _print(report, args.quiet and report.ok)
    return 0 if report.ok else 1


def _record(args: argparse.Namespace) -> int:
    install = patching.find_sglang(args.upstream)
    where = args.series or Path(str(manifest.series_folder(install.version)))
    content = manifest.record(where, install)
    path = where / manifest.MANIFEST
    write_json(content, path)
    print(f"{path}: {len(content['patches'])} patches, {len(content['files'])} files")
    return 0


def _print(report: patching.PatchReport, quiet: bool) -> None:
    if quiet:
        checked = ", every hash is right" if report.verb == "verify" else ""
        print(f"SGLang {report.sglang}, {len(report.files)} files: {report.state}{checked}")
        return
    print(f"SGLang {report.sglang} at {report.root}")
    width = max((len(name) for name in report.files), default=0)
    for name, state in report.files.items():
        print(f"  {name:<{width}}  {state}")
    for note in report.notes:
        print(f"note: {note}")
    if report.verb in ("apply", "revert"):
        print(f"{report.state}{'' if report.changed else ' already; nothing to do'}")
    elif report.verb == "verify":
        print(f"{report.state}: {'every hash is right' if report.ok else 'NOT as it should be'}")
    else:
        print(report.state)
    if report.state == "applied (other series)":
        print("`sgl-entropy patch apply` replaces it by this one; `patch revert` removes it.")


_ACTS: dict[str, tuple[Act, str]] = {
    "apply": (patching.apply, "patch every file, or none"),
    "status": (patching.status, "show the state of the install and of every touched file"),
    "revert": (patching.revert, "put upstream's files back, byte for byte"),
    "verify": (patching.verify, "check every hash; exit code 1 if anything is not as applied"),
}
ACTIONS = {
    name: Action(help_line, _options, partial(_run, act), _EPILOG)
    for name, (act, help_line) in _ACTS.items()
}
ACTIONS["record"] = Action(
    "for developers: regenerate a series' manifest from its patches and a pristine SGLang",
    _record_options,
    _record,
    _RECORD_EPILOG,
)
