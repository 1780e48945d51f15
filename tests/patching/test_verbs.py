"""Apply, status, verify and revert on a miniature SGLang."""

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest
from conftest import FIRST, NUMBERS, SECOND, UPSTREAM, VERSION, Mini, diff, snapshot

from sgl_entropy import patching
from sgl_entropy.cli import main
from sgl_entropy.patching import (
    PatchError,
    apply,
    find_sglang,
    fsops,
    journal,
    revert,
    status,
    verify,
)
from sgl_entropy.patching import manifest as manifest_module

ARGS = "sglang/srt/server_args.py"
HOOK = "sglang/srt/hooks/hook.py"
ATTENTION = "sglang/srt/layers/attention.py"


def test_round_trip(mini: Mini):
    pristine = snapshot(mini.dist)
    assert status(mini.install, mini.series).state == "not applied"
    assert not verify(mini.install, mini.series).ok

    report = apply(mini.install, mini.series)
    assert (report.state, report.changed) == ("applied", True)
    assert set(report.files.values()) == {"patched"}
    for name, text in {**UPSTREAM, **FIRST, **SECOND}.items():
        assert mini.path(name).read_text() == text
    assert verify(mini.install, mini.series).ok

    applied = snapshot(mini.dist)
    again = apply(mini.install, mini.series)
    assert (again.state, again.changed) == ("applied", False)
    assert snapshot(mini.dist) == applied

    assert revert(mini.install, mini.series).state == "not applied"
    assert snapshot(mini.dist) == pristine
    assert not revert(mini.install, mini.series).changed
    assert snapshot(mini.dist) == pristine


def test_files_are_replaced_not_written(mini: Mini):
    """A package manager's cache may hold hard links to every installed file."""
    cached = mini.dist.parent / "cached.py"
    os.link(mini.path(ARGS), cached)
    old = mini.path(ARGS).stat()
    mini.path(ARGS).chmod(0o640)
    apply(mini.install, mini.series)
    assert cached.read_text() == UPSTREAM[ARGS]
    new = mini.path(ARGS).stat()
    assert new.st_mode & 0o777 == 0o640
    assert int(new.st_mtime) > int(old.st_mtime), "stale bytecode would be taken for good"
    revert(mini.install, mini.series)
    assert int(mini.path(ARGS).stat().st_mtime) > int(new.st_mtime)
    assert mini.path(ARGS).stat().st_mode & 0o777 == 0o640


def test_imports_after_each_step_see_the_right_code(mini: Mini):
    """Files of equal size, changed within one second, through Python's bytecode cache."""
    mini.path("sglang/__init__.py").write_text("")
    value = "sglang/srt/untouched.py"
    mini.write_series(diff(UPSTREAM, {**FIRST, value: "x = 2\n"}))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def result(code: str) -> str:
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, cwd=mini.dist, env=environment, capture_output=True, text=True)
        return done.stdout.strip()

    def x() -> str:
        return result("import sglang.srt.untouched as u; print(u.x)")

    def hook() -> str:
        return result("import sglang.srt.hooks.hook as h; print(h.call())")

    assert (x(), hook()) == ("1", "")
    apply(mini.install, mini.series)
    assert (x(), hook()) == ("2", "1")
    assert mini.path("sglang/srt/hooks/__pycache__").is_dir()
    revert(mini.install, mini.series)
    assert (x(), hook()) == ("1", "")
    assert not mini.path("sglang/srt/hooks").exists(), "a folder with nothing but bytecode is left"


def test_other_links_and_folders_stay(mini: Mini):
    mini.path("sglang/srt/alias.py").symlink_to("untouched.py")
    mini.path("sglang/data").symlink_to("srt", target_is_directory=True)
    mini.path("sglang/empty").mkdir()
    mini.path("sglang/empty").chmod(0o750)
    pristine = snapshot(mini.dist)
    apply(mini.install, mini.series)
    assert mini.path("sglang/srt/alias.py").readlink().name == "untouched.py"
    assert mini.path("sglang/data").is_symlink()
    assert mini.path("sglang/empty").stat().st_mode & 0o777 == 0o750
    revert(mini.install, mini.series)
    assert snapshot(mini.dist) == pristine


def test_changed_and_missing_files_are_all_named(mini: Mini):
    mini.path(ARGS).write_text(UPSTREAM[ARGS] + "# mine\n")
    mini.path(ATTENTION).unlink()
    mini.path(HOOK).parent.mkdir()
    mini.path(HOOK).write_text("in the way\n")
    before = snapshot(mini.dist)
    with pytest.raises(PatchError) as caught:
        apply(mini.install, mini.series)
    assert caught.value.files == {ARGS: "changed", ATTENTION: "missing", HOOK: "changed"}
    assert all(name in str(caught.value) for name in (ARGS, ATTENTION, HOOK))
    assert status(mini.install, mini.series).state == "mixed/changed"
    assert not verify(mini.install, mini.series).ok
    assert snapshot(mini.dist) == before


def test_revert_refuses_local_changes(mini: Mini):
    apply(mini.install, mini.series)
    mini.path(HOOK).write_text("changed since\n")
    before = snapshot(mini.dist)
    with pytest.raises(PatchError) as caught:
        revert(mini.install, mini.series)
    assert caught.value.files == {HOOK: "changed"}
    assert snapshot(mini.dist) == before
    assert not verify(mini.install, mini.series).ok


def test_wrong_version(mini: Mini):
    mini.path("sglang/version.py").write_text('__version__ = "0.5.7"\n')
    shutil.rmtree(mini.path(f"sglang-{VERSION}.dist-info"))
    for verb in (apply, status, verify, revert):
        with pytest.raises(PatchError, match=r"SGLang 0\.5\.7.*for 0\.5\.6\.post2"):
            verb(mini.install, mini.series)


def test_versions_that_disagree(mini: Mini):
    mini.path("sglang/version.py").write_text('__version__ = "0.5.7"\n')
    with pytest.raises(PatchError, match=r"version\.py says 0\.5\.7.*0\.5\.6\.post2"):
        find_sglang(mini.dist)
    mini.path("sglang/version.py").unlink()
    assert find_sglang(mini.dist).version == VERSION
    shutil.rmtree(mini.path(f"sglang-{VERSION}.dist-info"))
    with pytest.raises(PatchError, match="gives a version"):
        find_sglang(mini.dist)


def test_where_sglang_is_looked_for(mini: Mini, tmp_path, monkeypatch):
    root = mini.path("sglang")
    assert find_sglang(mini.dist).root == find_sglang(root).root == root
    link = tmp_path / "linked"
    link.symlink_to(root)
    assert find_sglang(link).root == root
    checkout = tmp_path / "checkout"
    shutil.copytree(root, checkout / "python/sglang")
    assert find_sglang(checkout).root == checkout / "python/sglang"
    (tmp_path / "none").mkdir()
    with pytest.raises(PatchError, match="no SGLang found"):
        find_sglang(tmp_path / "none")
    with pytest.raises(PatchError, match="no such folder"):
        find_sglang(tmp_path / "nowhere")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PatchError, match=r"no SGLang found.*--sglang DIR"):
        find_sglang()


def test_linked_package_folder(mini: Mini, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "sglang").symlink_to(mini.path("sglang"), target_is_directory=True)
    apply(find_sglang(site), mini.series)
    assert (site / "sglang").is_symlink()
    assert mini.path(HOOK).read_text() == SECOND[HOOK]


def test_linked_folder_inside_is_refused(mini: Mini):
    elsewhere = mini.dist.parent / "elsewhere"
    mini.path("sglang/srt/layers").rename(elsewhere)
    mini.path("sglang/srt/layers").symlink_to(elsewhere)
    with pytest.raises(PatchError) as caught:
        apply(mini.install, mini.series)
    assert "sglang/srt/layers" in caught.value.files
    assert (elsewhere / "attention.py").read_text() == UPSTREAM[ATTENTION]
    assert status(mini.install, mini.series).state == "not applied"


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES])
def test_read_only_site_packages(mini: Mini, code: int, monkeypatch):
    """As root nothing is read-only, so every creation beside the package fails instead."""

    def read_only(patch) -> None:
        def refuse(path, *_):
            raise OSError(code, os.strerror(code), str(path))

        patch.setattr(fsops, "_acquire", refuse)
        patch.setattr(journal, "make_sibling", refuse)

    with monkeypatch.context() as patch:
        read_only(patch)
        before = snapshot(mini.dist)
        with pytest.raises(PatchError, match=r"(?s)Nothing was changed.*owner of"):
            apply(mini.install, mini.series)
        assert snapshot(mini.dist) == before
        assert status(mini.install, mini.series).state == "not applied"
    apply(mini.install, mini.series)
    read_only(monkeypatch)
    assert verify(mini.install, mini.series).ok
    assert not apply(mini.install, mini.series).changed, "nothing to write, so nothing to refuse"


def test_half_done_change_in_a_read_only_folder_is_told(mini: Mini, monkeypatch):
    """A journal that cannot be undone means a mixture of files: no verb may pass over it."""
    (mini.dist / ".sglang-sgl-entropy-journal").mkdir()

    def refuse(path, *_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(fsops, "_acquire", refuse)
    with pytest.raises(PatchError, match=r"journal of a run that was cut short.*read-only"):
        status(mini.install, mini.series)


def test_older_series_is_replaced(mini: Mini):
    pristine, patches = snapshot(mini.dist), mini.patches
    gone = "sglang/srt/old/gone.py"
    older = mini.write_series(diff(UPSTREAM, {**FIRST, gone: "x = 1\n"}), folder="older")
    apply(mini.install, older)
    mini.patches = patches
    found = status(mini.install, mini.series)
    assert found.state == "applied (other series)"
    assert found.files[gone] == found.files[ARGS] == "patched (other series)"
    assert found.files[ATTENTION] == "upstream"
    assert not verify(mini.install, mini.series).ok
    old_tree = snapshot(mini.dist)

    assert revert(mini.install, mini.series).changed
    assert snapshot(mini.dist) == pristine
    apply(mini.install, older)
    assert snapshot(mini.dist) == old_tree

    assert apply(mini.install, mini.series).state == "applied"
    assert not mini.path(gone).parent.exists()
    revert(mini.install, mini.series)
    assert snapshot(mini.dist) == pristine


def test_lost_or_damaged_record(mini: Mini):
    pristine = snapshot(mini.dist)
    apply(mini.install, mini.series)
    shutil.rmtree(mini.path("sglang/.sgl-entropy"))
    assert verify(mini.install, mini.series).ok
    revert(mini.install, mini.series)  # by reversing the patches
    assert snapshot(mini.dist) == pristine

    apply(mini.install, mini.series)
    original = mini.path("sglang/.sgl-entropy/originals/srt/server_args.py.orig")
    original.write_text("damaged\n")
    mini.path("sglang/.sgl-entropy/state.json").write_text("{")
    assert any("damaged" in note for note in status(mini.install, mini.series).notes)
    revert(mini.install, mini.series)
    assert snapshot(mini.dist) == pristine

    apply(mini.install, mini.series)
    original.write_text("damaged\n")
    report = verify(mini.install, mini.series)
    assert not report.ok
    assert any("server_args.py.orig: changed" in note for note in report.notes)


def test_deleted_files_come_back_from_the_originals_alone(mini: Mini):
    old = "sglang/srt/untouched.py"
    patch = f"--- a/{old}\n+++ /dev/null\n@@ -1 +0,0 @@\n-x = 1\n"
    mini.write_series(patch, diff(UPSTREAM, FIRST))
    pristine = snapshot(mini.dist)
    apply(mini.install, mini.series)
    assert not mini.path(old).exists()
    revert(mini.install, mini.series)
    assert snapshot(mini.dist) == pristine
    apply(mini.install, mini.series)
    shutil.rmtree(mini.path("sglang/.sgl-entropy"))
    with pytest.raises(PatchError, match="originals of these files are lost"):
        revert(mini.install, mini.series)


def test_reinstall_over_a_patched_one(mini: Mini):
    """pip puts its own files back and leaves ours: known contents all, so apply completes."""
    pristine = snapshot(mini.dist)
    apply(mini.install, mini.series)
    for name, text in UPSTREAM.items():
        mini.path(name).write_text(text)
    assert status(mini.install, mini.series).state == "mixed/changed"
    report = apply(mini.install, mini.series)
    assert report.state == "applied"
    assert any("some files were patched" in note for note in report.notes)
    revert(mini.install, mini.series)
    assert snapshot(mini.dist) == pristine


def test_two_at_once(mini: Mini, monkeypatch):
    """The second waits for the first, then finds its work done; or gives up with a message."""
    held, release = threading.Event(), threading.Event()

    def hold():
        with fsops.lock(mini.install.root):
            held.set()
            release.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    reports = []
    waiting = [
        threading.Thread(target=lambda: reports.append(apply(mini.install, mini.series)))
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    time.sleep(0.2)
    assert not reports
    with (
        pytest.raises(PatchError, match="another sgl-entropy patch"),
        fsops.lock(mini.install.root, patience_s=0),
    ):
        pass
    release.set()
    for thread in [holder, *waiting]:
        thread.join(60)
    assert sorted(report.changed for report in reports) == [False, True]
    assert [p.name for p in mini.dist.iterdir() if p.name.startswith(".")] == []


def test_unsupported_python():
    with pytest.raises(PatchError, match=r"Python 3\.9 is not supported.*3\.10"):
        patching.check_python((3, 9))
    patching.check_python()


def test_command(mini: Mini, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(patching, "load_series", lambda version: mini.series)
    where = ["--sglang", str(mini.dist)]
    assert main(["patch", "verify", *where]) == 1
    assert main(["patch", "apply", *where]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (ARGS, HOOK, ATTENTION))
    assert out.rstrip().endswith("applied")
    assert main(["patch", "status", *where, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == dict.fromkeys(
        [HOOK, ATTENTION, ARGS], "patched"
    )
    assert main(["patch", "verify", *where, "--json", str(tmp_path / "out.json")]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["ok"] is True
    capsys.readouterr()
    assert main(["patch", "verify", *where, "--quiet"]) == 0
    assert capsys.readouterr().out == f"SGLang {VERSION}, 3 files: applied, every hash is right\n"
    mini.path(ARGS).write_text("mine\n")
    assert main(["patch", "verify", *where, "--quiet"]) == 1
    assert ARGS in capsys.readouterr().out
    assert main(["patch", "revert", *where, "--json", "-"]) == 2
    captured = capsys.readouterr()
    assert ARGS in captured.err
    assert json.loads(captured.out)["files"] == {ARGS: "changed"}


def test_record_command(mini: Mini, capsys):
    path = mini.patches / manifest_module.MANIFEST
    kept = json.loads(path.read_text())
    path.unlink()
    words = ["patch", "record", "--upstream", str(mini.dist), "--series", str(mini.patches)]
    assert main(words) == 0
    assert json.loads(path.read_text()) == kept
    assert kept["patches"] == {
        "0001-step.patch": [ARGS, HOOK],
        "0002-step.patch": [ARGS, HOOK, ATTENTION],
    }
    assert kept["files"][HOOK]["upstream"] is None
    apply(mini.install, mini.series)
    assert main(words) == 2
    assert "not pristine" in capsys.readouterr().err


def test_nothing_heavy_is_imported(mini: Mini):
    """In a process of its own: neither torch nor SGLang, whose __init__ would raise here."""
    code = (
        "import sys; from sgl_entropy import patching as p; from pathlib import Path\n"
        "import sgl_entropy.cli.patch\n"
        f"series = p.read_series(Path({str(mini.patches)!r}))\n"
        "install = p.find_sglang()\n"
        "for verb in (p.apply, p.status, p.verify, p.revert): verb(install, series)\n"
        "print(install.root, [m for m in ('torch', 'sglang', 'numpy') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(mini.dist)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert run.stdout.strip() == f"{mini.path('sglang')} []", run.stderr


def test_line_numbers_are_exact(mini: Mini):
    """A hunk that would fit elsewhere is refused: the manifest's hashes know only one place."""
    shifted = diff({ARGS: "first\n" + UPSTREAM[ARGS]}, {ARGS: "first\n" + FIRST[ARGS]})
    assert NUMBERS[:6] in UPSTREAM[ARGS]
    with pytest.raises(PatchError, match="does not apply"):
        mini.write_series(shifted)
