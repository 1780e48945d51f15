"""The doctor's reading of launch flags, by the real SGLang's own definitions."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from sgl_entropy import patching
from sgl_entropy.doctor.diagnosis import Check
from sgl_entropy.doctor.flags import FlagError, LaunchFlags, parse_flags, split_command, split_text
from sgl_entropy.doctor.launch import check_launch
from sgl_entropy.doctor.machine import Machine
from tests.doctor.machines import cpu_machine, gpu_machine
from tests.drafter import tiny

ROOT = patching.find_sglang().root
CPU = "--device cpu --attention-backend torch_native --sleep-on-idle"


@pytest.fixture(scope="module")
def edsd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_drafter(tmp_path_factory.mktemp("drafters") / "edsd", tiny.edsd_config())


@pytest.fixture(scope="module")
def eagle3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_drafter(tmp_path_factory.mktemp("drafters") / "eagle3", tiny.eagle3_config())


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is in use for the length of the test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture(scope="module")
def free() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"--port {probe.getsockname()[1]}"


def patched_root(folder: Path) -> Path:
    """SGLang's flags as patched, whatever is installed: with EDSD among the algorithms."""
    source = (ROOT / "srt" / "server_args.py").read_text()
    plain, ours = '"EAGLE3", "NEXTN"', '"EAGLE3", "EDSD", "NEXTN"'
    assert plain in source or ours in source
    (folder / "srt").mkdir(parents=True)
    (folder / "srt" / "server_args.py").write_text(source.replace(plain, ours))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return patched_root(tmp_path_factory.mktemp("sglang"))


def found(root: Path, text: str, machine: Machine) -> dict[str, Check]:
    return {
        c.name: c
        for c in check_launch(LaunchFlags.of(parse_flags(root, split_text(text))), machine)
    }


def test_flags_are_those_of_sglang(root: Path) -> None:
    flags = parse_flags(
        root,
        split_text(
            "--model T --port=3 --tp 2 --pp-size 2 --dp 3 --enable-lora --lora-paths a=b c "
            "--speculative-num-step 4 --speculative-accept-threshold-acc 0.5"
        ),
    )
    assert flags == {
        "model_path": "T",
        "port": 3,
        "tensor_parallel_size": 2,
        "pipeline_parallel_size": 2,
        "data_parallel_size": 3,
        "enable_lora": True,
        "lora_paths": ["a=b", "c"],
        "speculative_num_steps": 4,  # SGLang's parser takes the beginning of a name
        "speculative_accept_threshold_acc": 0.5,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--port 1", "--model-path"),
        ("--model T --speculative-num-stepps 4", "--speculative-num-stepps"),
        ("--model T --port x", "--port"),
        ("--model T --speculative-algorithm EDDS", "invalid choice: 'EDDS'"),
        ("--model T --attention-backend torch", "invalid choice: 'torch'"),
        ("--model T --sleep-on-idle yes", "yes"),
    ],
)
def test_flags_that_sglang_would_refuse(root: Path, text: str, said: str) -> None:
    with pytest.raises(FlagError, match=said):
        parse_flags(root, split_text(text))


def test_a_folder_without_flags_and_an_open_quote_are_told(tmp_path: Path) -> None:
    with pytest.raises(FlagError, match=r"server_args\.py cannot be read"):
        parse_flags(tmp_path, ["--model", "T"])
    (tmp_path / "srt").mkdir()
    (tmp_path / "srt" / "server_args.py").write_text("x = 1\n")
    with pytest.raises(FlagError, match="defines no flags"):
        parse_flags(tmp_path, ["--model", "T"])
    with pytest.raises(FlagError, match="quotation"):
        split_text("--model 'T")


def test_a_whole_command_gives_its_variables_and_flags() -> None:
    words = ["A=1", "B=x=y", "python3", "-m", "sglang.launch_server", "--model", "T"]
    assert split_command(words) == ({"A": "1", "B": "x=y"}, ["--model", "T"])
    assert split_command(["--model", "a=b"]) == ({}, ["--model", "a=b"])


def test_a_good_launch_has_no_conflict(root: Path, edsd: Path, eagle3: Path, free: str) -> None:
    for algorithm, drafter in (("EDSD", edsd), ("EAGLE3", eagle3)):
        text = (
            f"--model some/target {free} --speculative-algorithm {algorithm} "
            f"--speculative-draft-model-path {drafter} --speculative-num-steps 4 "
            "--speculative-eagle-topk 3 --speculative-num-draft-tokens 12"
        )
        for machine, more in ((gpu_machine(), ""), (cpu_machine(), CPU)):
            checks = found(root, f"{text} {more}", machine)
            assert [(c.name, c.level) for c in checks.values()] == [("flags", "ok")], checks


@pytest.mark.parametrize(
    ("more", "name", "level", "said"),
    [
        ("--enable-lora", "--enable-lora", "FAIL", "LoRA"),
        ("--lora-paths a=b", "--enable-lora", "FAIL", "LoRA"),
        ("--pp-size 2", "--pp-size", "FAIL", "2 stages"),
        ("--enable-mixed-chunk", "--enable-mixed-chunk", "warn", "turns it off"),
        ("--quantization fp8", "--quantization", "warn", "fp8"),
        ("--speculative-token-map m.pt", "--speculative-token-map", "warn", "d2t"),
        ("--config launch.yaml", "--config", "warn", "not examined"),
        ("--speculative-num-steps 0", "draft", "FAIL", "at least 1"),
        ("--speculative-num-steps 4 --speculative-eagle-topk 33", "draft", "FAIL", "1..32"),
        (
            "--speculative-num-steps 2 --speculative-eagle-topk 2 "
            "--speculative-num-draft-tokens 99",
            "draft",
            "FAIL",
            "2..7",
        ),
        ("--speculative-eagle-topk 2", "draft", "FAIL", "without --speculative-num-steps"),
    ],
)
def test_conflicts_with_edsd_anywhere(
    root: Path, edsd: Path, free: str, more: str, name: str, level: str, said: str
) -> None:
    base = f"--model some/target {free} --speculative-algorithm EDSD "
    base += f"--speculative-draft-model-path {edsd} "
    checks = found(root, base + more, gpu_machine())
    assert list(checks) == [name]
    assert checks[name].level == level
    assert said in checks[name].found
    assert checks[name].fix
    # Without speculation none of these is a conflict.
    plain = found(root, f"--model some/target {free} {more}", gpu_machine())
    assert name == "--config" or [c.level for c in plain.values()] == ["ok"]


@pytest.mark.parametrize(
    ("flags", "name", "level"),
    [
        ("--attention-backend torch_native --sleep-on-idle --device cuda", "--device", "FAIL"),
        ("--device cpu --sleep-on-idle", "--attention-backend", "warn"),
        ("--attention-backend triton --sleep-on-idle", "--attention-backend", "FAIL"),
        ("--device cpu --attention-backend torch_native", "--sleep-on-idle", "warn"),
        (f"{CPU} --tp 2", "--tp-size", "warn"),
        (f"{CPU} --page-size 16", "--page-size", "FAIL"),
        (
            f"{CPU} --speculative-accept-threshold-single 0.5",
            "--speculative-accept-threshold-single",
            "FAIL",
        ),
        (
            f"{CPU} --speculative-accept-threshold-acc 0.5",
            "--speculative-accept-threshold-acc",
            "FAIL",
        ),
    ],
)
def test_conflicts_on_the_cpu_engine_alone(
    root: Path, edsd: Path, free: str, flags: str, name: str, level: str
) -> None:
    text = f"--model some/target {free} --speculative-algorithm EDSD "
    text += f"--speculative-draft-model-path {edsd} {flags}"
    checks = found(root, text, cpu_machine())
    assert {n: c.level for n, c in checks.items()} == {name: level}
    assert [c.level for c in found(root, text, gpu_machine()).values()] == ["ok"]


def test_a_drafter_under_the_other_algorithm_and_none_at_all(
    root: Path, edsd: Path, eagle3: Path, free: str
) -> None:
    base = f"--model some/target {free} --speculative-algorithm"
    for algorithm, drafter, right in (("EAGLE3", edsd, "EDSD"), ("EDSD", eagle3, "EAGLE3")):
        text = f"{base} {algorithm} --speculative-draft-model-path {drafter}"
        check = found(root, text, gpu_machine())["--speculative-algorithm"]
        assert check.level == "FAIL"
        assert right in check.found
    missing = found(root, f"{base} EDSD", gpu_machine())["--speculative-draft-model-path"]
    assert missing.level == "FAIL"


def test_folders_that_are_not_there(root: Path, tmp_path: Path, free: str) -> None:
    text = f"--model {tmp_path}/none {free} --speculative-algorithm EAGLE3 "
    text += "--speculative-draft-model-path ./neither"
    levels = {n: c.level for n, c in found(root, text, gpu_machine()).items()}
    assert levels == {"--model-path": "FAIL", "--speculative-draft-model-path": "FAIL"}


def test_a_port_in_use_and_no_port(root: Path, port: int) -> None:
    used = found(root, f"--model T --port {port}", gpu_machine())["--port"]
    assert used.level == "FAIL"
    assert f"127.0.0.1:{port}: in use" in used.found
    assert found(root, "--model T --port 99999", gpu_machine())["--port"].level == "FAIL"
