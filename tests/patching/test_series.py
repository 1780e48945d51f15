"""Patches and manifests that are not as they should be; and the series that is shipped."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from conftest import FIRST, UPSTREAM, Mini, diff, snapshot

from sgl_entropy.patching import (
    PatchError,
    apply,
    find_sglang,
    load_series,
    read_series,
    revert,
    status,
    verify,
)
from sgl_entropy.patching.engine import PatchFile, touched
from sgl_entropy.patching.manifest import record, supported_versions

GOOD = diff(UPSTREAM, FIRST)
OUTSIDE = {"upstream": None, "patched": None}
A = "--- a/sglang/a.py\n+++ b/sglang/a.py\n"

MALFORMED = {
    "empty": "",
    "prose": "Dear reader,\nthis is no patch.\n",
    "binary": "\0\1\2",
    "no hunk": A,
    "cut off": A + "@@ -1,3 +1,4 @@\n one\n+two\n",
    "count too low": A + "@@ -1,1 +1,2 @@\n one\n+two\n+three\n",
    "count too high": A + "@@ -1,9 +1,10 @@\n one\n+two\n three\n" + A + "@@ -1 +1 @@\n-x\n+y\n",
    "stray line between": A + "@@ -1 +1 @@\n-x\n+y\n+z\n"
    + A.replace("a.py", "b.py") + "@@ -1 +1 @@\n-x\n+y\n",
    "no newline at end": A + "@@ -1 +1 @@\n-x\n+y\n\\ No newline at end of file\n",
    "absolute path": A.replace("a/sglang", "/etc") + "@@ -1 +1 @@\n-x\n+y\n",
    "path out of the package": A.replace("sglang/", "sglang/../../") + "@@ -1 +1 @@\n-x\n+y\n",
    "not in the package": A.replace("sglang/", "other/") + "@@ -1 +1 @@\n-x\n+y\n",
    "rename": A.replace("+++ b/sglang/a.py", "+++ b/sglang/b.py") + "@@ -1 +1 @@\n-x\n+y\n",
    "pure rename": "diff --git a/sglang/a.py b/sglang/b.py\nsimilarity index 100%\n"
    "rename from sglang/a.py\nrename to sglang/b.py\n",
    "empty new file": "diff --git a/sglang/e.py b/sglang/e.py\nnew file mode 100644\n"
    "index 0000000..e69de29\ndiff --git a/sglang/a.py b/sglang/a.py\nindex 1111111..2222222\n"
    + A + "@@ -1 +1 @@\n-x\n+y\n",
    "empty new file last": "diff --git a/sglang/a.py b/sglang/a.py\nindex 1111111..2222222 100644\n"
    + A + "@@ -1 +1 @@\n-x\n+y\ndiff --git a/sglang/e.py b/sglang/e.py\nnew file mode 100644\n"
    "index 0000000..e69de29\n",
    "mode": "diff --git a/sglang/a.py b/sglang/a.py\nold mode 100644\nnew mode 100755\n"
    "index 1111111..2222222\n" + A + "@@ -1 +1 @@\n-x\n+y\n",
}  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_patch(text: str):
    with pytest.raises(PatchError, match=r"0007-bad\.patch"):
        touched(PatchFile("0007-bad.patch", text.encode()))


def test_git_format_patch_is_read():
    """As ``git format-patch`` writes it: mail header, diffstat, git's headers, signature."""
    text = (
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\n"
        "From: A <a@example.com>\nSubject: [PATCH] One purpose\n\nWhy.\n---\n"
        " sglang/a.py | 2 +-\n sglang/new.py | 1 +\n 2 files changed\n\n"
        "diff --git a/sglang/a.py b/sglang/a.py\nindex 1111111..2222222 100644\n"
        + A
        + "@@ -1 +1 @@\n-x\n+y\n"
        "diff --git a/sglang/new.py b/sglang/new.py\nnew file mode 100644\n"
        "index 0000000..2222222\n--- /dev/null\n+++ b/sglang/new.py\n@@ -0,0 +1 @@\n+y\n"
        "-- \n2.43.0\n\n"
    )
    assert touched(PatchFile("x.patch", text.encode())) == ["sglang/a.py", "sglang/new.py"]


def test_record_refuses_what_does_not_fit(mini: Mini):
    with pytest.raises(PatchError, match=r"0002-step\.patch does not apply"):
        mini.write_series(
            GOOD, diff({"sglang/srt/untouched.py": "y = 1\n"}, {"sglang/srt/untouched.py": "z\n"})
        )
    with pytest.raises(PatchError, match=r"creates sglang/srt/hooks/hook\.py, which exists"):
        mini.write_series(GOOD, diff({}, {"sglang/srt/hooks/hook.py": "x\n"}))
    with pytest.raises(PatchError, match=r"sglang/gone\.py does not exist"):
        mini.write_series(diff({"sglang/gone.py": "x\n"}, {"sglang/gone.py": "y\n"}))
    # patch-ng passes over a hunk that looks applied already
    with pytest.raises(PatchError, match="already patched"):
        mini.write_series(
            diff({"sglang/srt/untouched.py": "y = 1\n"}, {"sglang/srt/untouched.py": "x = 1\n"})
        )


def test_wrong_result_is_not_written(mini: Mini):
    path = mini.patches / "manifest.json"
    content = json.loads(path.read_text())
    for name in ("sglang/srt/server_args.py", "sglang/srt/hooks/hook.py"):
        content["files"][name]["patched"] = "0" * 64
    path.write_text(json.dumps(content))
    before = snapshot(mini.dist)
    with pytest.raises(PatchError, match="than their manifest says") as caught:
        apply(mini.install, mini.series)
    assert set(caught.value.files) == {"sglang/srt/server_args.py", "sglang/srt/hooks/hook.py"}
    assert snapshot(mini.dist) == before


def _edit(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), "damaged"),
        (lambda f: _edit(f / "manifest.json", files={"sglang/a.py": {}}), "damaged"),
        (lambda f: _edit(f / "manifest.json", format=99), "format 99"),
        (lambda f: _edit(f / "manifest.json", files={"../x": OUTSIDE}), "names the file"),
        (lambda f: (f / "0001-step.patch").write_text(GOOD + "\n"), "other patches"),
        (lambda f: (f / "0003-more.patch").write_text(GOOD), "other patches"),
        (lambda f: [p.unlink() for p in f.glob("*.patch")], "no \\*.patch"),
    ],
)  # fmt: skip
def test_damaged_series(mini: Mini, damage, message: str):
    damage(mini.patches)
    with pytest.raises(PatchError, match=message):
        read_series(mini.patches)


def test_unknown_version_names_the_known_ones():
    with pytest.raises(PatchError, match=r"SGLang 0\.4\.0 is not supported.*0\.5\.6\.post2"):
        load_series("0.4.0")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """A pristine copy of the SGLang in this environment, and the series shipped for it."""
    if importlib.util.find_spec("sglang") is None:
        pytest.skip("no SGLang installed here")
    found = find_sglang()
    if found.version not in supported_versions():
        pytest.skip(f"no series for SGLang {found.version}")
    dist = tmp_path_factory.mktemp("real copy")
    shutil.copytree(found.root, dist / "sglang", ignore=shutil.ignore_patterns("__pycache__"))
    install = find_sglang(dist)
    try:
        series = load_series(found.version)
    except PatchError as error:
        pytest.skip(str(error)) if "no *.patch" in str(error) else pytest.fail(str(error))
    if install.path("sglang/.sgl-entropy").exists():
        revert(install, series)
    return install, series


def test_shipped_series_goes_on_and_off(shipped):
    install, series = shipped
    pristine = snapshot(install.root.parent)
    assert status(install, series).state == "not applied"
    apply(install, series)
    assert verify(install, series).ok
    for name in series.files:
        if name.endswith(".py"):
            compile(install.path(name).read_bytes(), name, "exec")
    changed = {
        f"sglang/{path}"
        for path, data in snapshot(install.root).items()
        if data is not None and pristine.get(f"sglang/{path}") != data
    }
    assert {n for n in changed if ".sgl-entropy" not in n} == set(series.files)
    revert(install, series)
    assert snapshot(install.root.parent) == pristine


def test_shipped_manifest_is_current(shipped):
    install, series = shipped
    folder = install.root.parent / "series"
    folder.mkdir()
    for patch in series.patches:
        (folder / patch.name).write_bytes(patch.data)
    content = record(folder, install)
    assert content["series"] == series.hash
    assert content["sglang"] == series.sglang
    assert content["files"] == {name: hashes._asdict() for name, hashes in series.files.items()}
