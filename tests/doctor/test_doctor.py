"""The doctor on whole installs: patch states, changed sources, drafters, the command itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from sgl_entropy import patching
from sgl_entropy.apiuse.uses import Mismatch, Use
from sgl_entropy.cli import main
from sgl_entropy.doctor import Diagnosis, ExaminationRequest, examine, host
from sgl_entropy.doctor.diagnosis import Check
from sgl_entropy.doctor.machine import Machine
from sgl_entropy.patching import manifest
from sgl_entropy.patching.state import original_name, survey, upstream_contents
from tests.doctor.machines import cpu_machine, gpu_machine
from tests.drafter import tiny

VERSION = "0.5.6.post2"


@pytest.fixture
def unpacked(tmp_path: Path) -> Path:
    """An unpatched SGLang reduced to the files that the series touches."""
    install = patching.find_sglang()
    series = patching.load_series(install.version)
    files = upstream_contents(install, series, survey(install, series))
    for name, data in files.items():
        if data is not None:
            path = tmp_path / "dist" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    package = tmp_path / "dist" / "sglang"
    (package / "version.py").write_text(f'__version__ = "{VERSION}"\n')
    return package


def patch_checks(package: Path) -> dict[str, Check]:
    return {c.name: c for c in host.check_patches(patching.find_sglang(package))}


def apply(package: Path) -> None:
    install = patching.find_sglang(package)
    patching.apply(install, patching.load_series(install.version))


def test_patches_absent_and_applied(unpacked: Path) -> None:
    absent = patch_checks(unpacked)["patches"]
    assert (absent.level, absent.fix) == ("FAIL", "sgl-entropy patch apply")
    apply(unpacked)
    assert {n: c.level for n, c in patch_checks(unpacked).items()} == {"patches": "ok"}


def test_a_changed_file_is_named(unpacked: Path) -> None:
    apply(unpacked)
    with (unpacked / "srt" / "models" / "llama.py").open("a") as file:
        file.write("# edited\n")
    check = patch_checks(unpacked)["patches"]
    assert check.level == "FAIL"
    assert "sglang/srt/models/llama.py changed" in check.found
    assert "--force-reinstall" in check.fix


def test_a_damaged_original_is_a_warning(unpacked: Path) -> None:
    apply(unpacked)
    install = patching.find_sglang(unpacked)
    install.path(original_name("sglang/srt/models/llama.py")).write_text("other")
    checks = patch_checks(unpacked)
    assert {n: c.level for n, c in checks.items()} == {"patches": "ok", "patch originals": "warn"}
    assert "llama.py" in checks["patch originals"].found


def test_another_release_of_ours_and_a_half_patched_tree(unpacked: Path, tmp_path: Path) -> None:
    install = patching.find_sglang(unpacked)
    shipped = Path(str(manifest.series_folder(VERSION)))
    older = tmp_path / "older"
    older.mkdir()
    shutil.copy(min(shipped.glob("*.patch")), older)
    (older / "manifest.json").write_text(json.dumps(manifest.record(older, install)))
    patching.apply(install, patching.read_series(older))
    other = patch_checks(unpacked)["patches"]
    assert (other.level, "replaces" in other.fix) == ("FAIL", True)
    shutil.rmtree(unpacked / ".sgl-entropy")
    mixed = patch_checks(unpacked)["patches"]
    assert (mixed.level, "neither applied nor absent" in mixed.found) == ("FAIL", True)


def test_a_series_that_cannot_be_used_is_told(unpacked: Path) -> None:
    (unpacked / "version.py").write_text('__version__ = "0.5.7"\n')
    check = patch_checks(unpacked)["patches"]
    assert check.level == "FAIL"
    assert "0.5.7" in check.found


def test_functions_are_listed_up_to_a_limit(unpacked: Path) -> None:
    install = patching.find_sglang(unpacked)
    use = Use("has", "sglang.srt.x", "y", "z")
    mismatches = [Mismatch(use, "it to exist", f"found nothing {i}") for i in range(30)]
    assert [c.level for c in host.check_functions(install, lambda _: [], 30)] == ["ok"]
    some = list(host.check_functions(install, lambda _: mismatches, 30))
    assert {c.level for c in some} == {"FAIL"}
    assert "sglang.srt.x.y" in some[0].found
    assert some[-1].found == "18 more of 30 uses do not fit"

    def unreadable(_: Path) -> list[Mismatch]:
        raise PermissionError(13, "Permission denied", "server_args.py")

    (check,) = host.check_functions(install, unreadable, 30)
    assert (check.level, "server_args.py" in check.found) == ("FAIL", True)


Make = Callable[..., Machine]


def ask(make: Make, **question: object) -> Diagnosis:
    def machine_for(environ: Mapping[str, str], site: Path | None) -> Machine:
        return make()

    return examine(ExaminationRequest(**question), machine_for)  # type: ignore[arg-type]


def levels(report: Diagnosis) -> dict[str, str]:
    return {check.name: check.level for check in report.checks}


def test_a_patched_install_on_a_gpu_machine_is_fine(tmp_path: Path) -> None:
    """The GPU machine's view, with this machine's SGLang patched in a copy of its sources."""
    source = patching.find_sglang().root
    wanted = shutil.ignore_patterns("__pycache__", "*.pyc", "*.json", "*.so")
    shutil.copytree(source, tmp_path / "sglang", ignore=wanted)
    apply(tmp_path)
    report = ask(gpu_machine, sglang=str(tmp_path))
    assert report.ok, report.lines()
    assert set(levels(report).values()) == {"ok"}
    assert {"python", "sglang", "torch", "patches", "functions", "device"} <= set(levels(report))


def test_no_sglang_and_a_foreign_version(unpacked: Path, tmp_path: Path) -> None:
    nowhere = ask(gpu_machine, sglang=str(tmp_path / "none"))
    assert not nowhere.ok
    assert levels(nowhere)["sglang"] == "FAIL"
    assert "patches" not in levels(nowhere)
    (unpacked / "version.py").write_text('__version__ = "0.5.7"\n')
    other = ask(gpu_machine, sglang=str(unpacked))
    assert levels(other)["sglang"] == "FAIL"
    assert "functions" not in levels(other)  # the table is for another release
    (check,) = (c for c in other.checks if c.name == "sglang")
    assert check.fix == f'pip install "sglang=={VERSION}"'


def test_variables_of_the_launch_reach_the_machine(unpacked: Path) -> None:
    seen: list[str | None] = []

    def machine_for(environ: Mapping[str, str], site: Path | None) -> Machine:
        seen.append(environ.get("OMP_NUM_THREADS"))
        assert site == unpacked.parent
        return cpu_machine(environ=environ)

    words = ("OMP_NUM_THREADS=7", "--model", "T")
    report = examine(ExaminationRequest(sglang=str(unpacked), launch=words), machine_for)
    assert seen == ["7"]
    assert levels(report)["threads"] == "warn"


def test_refused_flags_are_one_failure(unpacked: Path) -> None:
    report = ask(gpu_machine, sglang=str(unpacked), launch=("--model", "T", "--no-such"))
    (check,) = (c for c in report.checks if c.name == "flags")
    assert (check.level, "--no-such" in check.found) == ("FAIL", True)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    drafter = tiny.write_drafter(tmp_path / "drafter", tiny.edsd_config())
    return drafter, tiny.write_target(tmp_path / "target")


def test_drafter_against_target(unpacked: Path, pair: tuple[Path, Path], tmp_path: Path) -> None:
    drafter, target = map(str, pair)
    good = ask(gpu_machine, sglang=str(unpacked), drafter=drafter, target=target)
    mine = {n: level for n, level in levels(good).items() if n.startswith("drafter")}
    assert "drafter: layers" in mine
    assert "FAIL" not in mine.values()
    # The same two folders, found in the launch flags.
    words = ("--model", target, "--speculative-draft-model-path", drafter)
    assert "drafter: layers" in levels(ask(gpu_machine, sglang=str(unpacked), launch=words))
    alone = ask(gpu_machine, sglang=str(unpacked), drafter=drafter)
    assert any(n.startswith("drafter") for n in levels(alone))
    foreign = tiny.write_target(tmp_path / "foreign", vocab_size=80)
    bad = ask(gpu_machine, sglang=str(unpacked), drafter=drafter, target=str(foreign))
    assert levels(bad)["drafter: vocabulary"] == "FAIL"
    assert levels(ask(gpu_machine, sglang=str(unpacked), target=target))["drafter"] == "FAIL"


def test_a_missing_torch_leaves_the_headers(
    unpacked: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_torch(*_: object) -> None:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr("sgl_entropy.doctor.examination.check_drafter", no_torch)
    drafter, target = map(str, pair)
    report = ask(gpu_machine, sglang=str(unpacked), drafter=drafter, target=target)
    assert levels(report)["drafter"] == "warn"


def test_the_command_prints_a_line_a_check_and_writes_json(
    unpacked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.json"
    code = main(["doctor", "--sglang", str(unpacked), "--json", str(file)])
    printed = capsys.readouterr().out.splitlines()
    content = json.loads(file.read_text())
    assert code == 1  # not patched
    assert content["ok"] is False
    assert content["failures"] == sum(c["level"] == "FAIL" for c in content["checks"])
    assert len(printed) == len(content["checks"]) + 1
    for line, check in zip(printed, content["checks"], strict=False):
        assert line.startswith(check["level"])
        assert check["name"] in line
        assert (check["fix"] == "") == (check["level"] == "ok")
    assert main(["doctor", "--sglang", str(unpacked), "--json", "-"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"] == content["failures"]


def test_the_command_takes_flags_after_dashes_or_as_text(
    unpacked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (["--", "--model", "T", "--pp-size", "x"], ["--flags", "--model T --pp-size x"]):
        assert main(["doctor", "--sglang", str(unpacked), *words]) == 1
        assert "argument --pipeline-parallel-size" in capsys.readouterr().out
    both = ["doctor", "--flags", "--model T", "--", "--model", "T"]
    assert main(both) == 2
    assert "once" in capsys.readouterr().err


def test_a_report_is_one_line_a_check() -> None:
    report = Diagnosis((Check("FAIL", "files", "two:\n  a\n  b\n", "mend them"),))
    assert report.lines() == ["FAIL  files  two: a; b -> mend them", "1 failure, 0 warnings"]
    assert not report.ok
    assert Diagnosis((Check("warn", "x", "y", "z"),)).ok
