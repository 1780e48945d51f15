"""``sgl-entropy patch``: apply, check or revert the patch series on an installed SGLang."""

from __future__ import annotations

import argparse
from pathlib import Path

from sgl_entropy import patching
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

_VERBS = {
    "apply": (patching.apply, "patch every file, or none"),
    "status": (patching.status, "show the state of the install and of every touched file"),
    "revert": (patching.revert, "put upstream's files back, byte for byte"),
    "verify": (patching.verify, "check every hash; exit code 1 if anything is not as applied"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``sgl-entropy patch``."""
    parser.epilog = _EPILOG
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (_, help_line) in _VERBS.items():
        action = actions.add_parser(
            name,
            help=help_line,
            description=help_line[0].upper() + help_line[1:] + ".",
            epilog=_EPILOG,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_argument(
            "--sglang",
            metavar="DIR",
            help="the package folder of SGLang, or a folder that contains it, such as an unpacked "
            "wheel (default: the one that this Python would import)",
        )
        action.add_argument("--json", metavar="FILE", help="write the outcome there; - for stdout")
        action.add_argument(
            "--quiet", action="store_true", help="print one line; name files only on a fault"
        )
    record = actions.add_parser(
        "record",
        help="for developers: regenerate a series' manifest from its patches",
        description="Regenerate manifest.json from the patch files and a pristine SGLang.",
        epilog=_RECORD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    record.add_argument("--upstream", metavar="DIR", required=True, help="a pristine SGLang")
    record.add_argument(
        "--series",
        metavar="DIR",
        type=Path,
        help="folder of the patches (default: the shipped one for the version of --upstream)",
    )


def run(args: argparse.Namespace) -> int:
    """Do it and print; returns the exit code."""
    patching.check_python()
    if args.action == "record":
        return _record(args.upstream, args.series)
    act = _VERBS[args.action][0]
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


def _record(upstream: str, folder: Path | None) -> int:
    install = patching.find_sglang(upstream)
    where = folder or Path(str(manifest.series_folder(install.version)))
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
