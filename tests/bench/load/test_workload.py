"""Which prompts are sent, and how they reach a server."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.http.client import ServerError
from sgl_entropy_bench.load.run.endpoint import Endpoint, tau_of_counters
from sgl_entropy_bench.load.schedule.workload import WorkloadPrompt, load_workload, read_prompts

from tests.scripted_server import ScriptedServer

KINDS = {"code", "conversation", "instruction", "maths", "summary"}


def test_the_built_in_workload() -> None:
    found = load_workload([], 80, seed=0)
    assert Counter(prompt.benchmark for prompt in found.prompts) == dict.fromkeys(KINDS, 80)
    assert len({prompt.text for prompt in found.prompts}) == 400
    assert len({prompt.id for prompt in found.prompts}) == 400
    warm = {prompt.text for prompt in found.warmup}
    assert len(warm) == 8
    assert not warm & {prompt.text for prompt in found.prompts}
    # Shuffled: the kinds take turns.
    assert len({prompt.benchmark for prompt in found.prompts[:12]}) >= 4


def test_a_seed_decides_the_order_and_nothing_else() -> None:
    one, same, other = (load_workload([], 80, seed) for seed in (1, 1, 2))
    assert one == same
    assert one.prompts != other.prompts
    assert set(one.prompts) == set(other.prompts)


def test_clients_that_share_a_load_share_the_prompts() -> None:
    parts = [load_workload([], 80, 0, share=(i, 3)) for i in range(3)]
    assert sum(len(part.prompts) for part in parts) == 400
    assert len({p.text for part in parts for p in part.prompts}) == 400
    assert {(part.whole, part.digest) for part in parts} == {(400, parts[0].digest)}
    with pytest.raises(ValueError, match="too few for 9 clients"):
        load_workload([], 1, 0, share=(0, 9))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", {"turns": ["one", "two"]}, {"prompt": "three", "id": "x"})
    talk = [{"from": "gpt", "value": "no"}, {"from": "human", "value": "five"}]
    write(tmp_path / "b.jsonl", {"question": "four"}, {"conversations": talk, "benchmark": "c"})
    found = load_workload([str(tmp_path)], 80, seed=0, warmup=0)
    assert set(found.prompts) == {
        WorkloadPrompt("a/1", "a", "one"),
        WorkloadPrompt("a/x", "a", "three"),
        WorkloadPrompt("b/1", "b", "four"),
        WorkloadPrompt("c/2", "c", "five"),
    }
    # Warm-up takes from what would be measured where a benchmark can spare it.
    some = load_workload([str(tmp_path / "a.jsonl")], 80, seed=0, warmup=1)
    assert [len(some.prompts), len(some.warmup)] == [1, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"turns": ["a"]}\n{"turns": []}\n', "x.jsonl:2"),
        ('{"turns": ["a"]}\nnot json\n', "x.jsonl:2"),
        ('{"turns": [1]}\n', "x.jsonl:1"),
        ('{"prompt": " "}\n', "x.jsonl:1"),
        ('{"colour": "red"}\n', "x.jsonl:1"),
        ("[]\n", "x.jsonl:1"),
        ('{"conversations": [{"from": "gpt", "value": "a"}]}\n', "x.jsonl:1"),
        ("\n", "holds no prompt"),
    ],
)
def test_a_broken_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_prompts(path)


def test_what_cannot_be_a_workload(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", {"prompt": "a"})
    with pytest.raises(ValueError, match="none is left to warm up"):
        load_workload([str(one)], 80, seed=0)
    with pytest.raises(ValueError, match="--per-benchmark"):
        load_workload([], 0, seed=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \.jsonl file"):
        load_workload([str(tmp_path / "empty")], 80, seed=0)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="no UTF-8"):
        load_workload([str(tmp_path / "bytes.jsonl")], 80, seed=0)


def test_data_sets_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[dict[str, Any]]:
        asked.append((name, split))
        if name == "nobody/nothing":
            raise FileNotFoundError("no such data set")
        return [{"question": "one", "body": "two"}] * 2

    library = types.ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    found = load_workload(["hf:who/what"], 80, 0, warmup=0)
    assert [prompt.text for prompt in found.prompts] == ["one"]  # the second is the same
    found = load_workload(["hf:who/what:train:body"], 80, 0, warmup=0)
    assert [prompt.text for prompt in found.prompts] == ["two"]
    assert asked == [("who/what", "test"), ("who/what", "train")]
    with pytest.raises(ValueError, match="name the field"):
        load_workload(["hf:who/what:test:title"], 80, 0)
    with pytest.raises(ValueError, match="no such data set"):
        load_workload(["hf:nobody/nothing"], 80, 0)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        load_workload(["hf:who/what"], 80, 0)


def test_templates_are_named_and_never_guessed(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    prompt = WorkloadPrompt("p", "b", "hi")
    with ScriptedServer("--ranks", "3") as server:
        plain = Endpoint.connect("a", server.url)
        assert (plain.api, plain.text(prompt), plain.ranks) == ("generate", "hi", 3)
        assert plain.arguments() == {"dp_size": 3, "model_path": "fake", "fake": True}
        named = Endpoint.connect("a", server.url, "generate", folder)
        assert named.text(prompt) == "<user>hi<assistant>"
        chat = Endpoint.connect("a", server.url, "chat", folder)
        assert (chat.api, chat.text(prompt)) == ("chat", "hi")
        assert (chat.model, chat.version()) == ("fake", "fake-1")
    with pytest.raises(ServerError, match="no server answers"):
        Endpoint.connect("a", server.url)
    with pytest.raises(ValueError, match="http://HOST:PORT"):
        Endpoint.connect("a", "https://h")


def test_the_cache_is_emptied_once_the_server_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer() as server:
        target = Endpoint.connect("a", server.url)
    answers = iter([ServerError("busy", 400), ServerError("busy", 400), None])
    monkeypatch.setattr("time.sleep", lambda seconds: None)

    def post(path: str, timeout_s: float) -> None:
        if (error := next(answers)) is not None:
            raise error

    monkeypatch.setattr(target.client, "post", post)
    assert target.forget_prefixes()
    answers = iter([ServerError("no such route", 404)])
    assert not target.forget_prefixes()
    answers = iter([ServerError("busy", 400)] * 9)
    assert not target.forget_prefixes(patience_s=-1.0)


def test_tau_from_a_servers_counters() -> None:
    before = [{"cycles": 10, "emitted": 20}, {"cycles": 0, "emitted": 0}]
    after = [{"cycles": 20, "emitted": 45}, {"cycles": 10, "emitted": 15}]
    assert tau_of_counters(before, after) == 2.0
    assert tau_of_counters(before, before) is None
    assert tau_of_counters([], []) is None
    assert tau_of_counters(before, after[:1]) is None


def test_the_command_starts_without_anything_heavy() -> None:
    script = (
        "import sys; from sgl_entropy.cli import build_parser\n"
        "build_parser('bench').parse_args(['bench', 'latency', '--arms', 'a=b', '--qps', '1'])\n"
        "print([m for m in ('torch', 'sglang', 'aiohttp', 'numpy', 'matplotlib') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
