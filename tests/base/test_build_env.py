"""The environment's stamps: what is done is skipped, what was interrupted is done again."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "requirements" / "build_env.py"


@pytest.fixture
def build_env(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script as a module, with a root of its own and commands recorded, not run."""
    spec = importlib.util.spec_from_file_location("build_env", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    for name in module.PINS:
        (tmp_path / "requirements" / name).write_text("# a comment\nthing==1.0\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    module.labels = []

    def record(label: str, command: list[str]) -> None:
        module.labels.append(label)
        if label == "virtual environment":
            Path(command[-1]).mkdir()

    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "step", record)
    return module


def built(module: ModuleType) -> list[str]:
    module.labels.clear()
    module.build(module.ROOT / ".venv", None, [])
    return list(module.labels)


def test_a_second_build_does_nothing(build_env: ModuleType) -> None:
    assert built(build_env)[0] == "virtual environment"
    assert built(build_env) == []


def test_changed_pins_and_a_changed_project_are_noticed(build_env: ModuleType) -> None:
    built(build_env)
    (build_env.ROOT / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert built(build_env) == ["sgl-entropy, editable"]
    (build_env.ROOT / "requirements" / "dev.txt").write_text("thing==2.0\n")
    assert "dev.txt" in built(build_env)
    assert built(build_env) == []


def test_an_interrupted_build_starts_over(
    build_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build_env.step

    def interrupted(label: str, command: list[str]) -> None:
        if label == "dev.txt":
            raise KeyboardInterrupt
        record(label, command)

    monkeypatch.setattr(build_env, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        built(build_env)
    half = build_env.ROOT / ".venv" / "half-installed"
    half.write_text("")
    monkeypatch.setattr(build_env, "step", record)
    assert built(build_env)[0] == "virtual environment"
    assert not half.exists()
    assert built(build_env) == []


def test_an_environment_of_another_python_is_built_anew(build_env: ModuleType) -> None:
    built(build_env)
    stamp = build_env.ROOT / ".venv" / "pins.stamp"
    stamp.write_text(stamp.read_text().replace(build_env.python_tag(), "python3.9"))
    assert built(build_env)[0] == "virtual environment"


def test_an_unsupported_python_is_named(
    build_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(build_env.BuildError, match=r"needs Python 3\.11 or 3\.12"):
        build_env.check_python()


def test_a_full_disk_is_told_before_anything_is_installed(
    build_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": 2**30})
    monkeypatch.setattr(build_env.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(build_env.BuildError, match=r"1\.0 GB free"):
        built(build_env)
    assert build_env.labels == []
