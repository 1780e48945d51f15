"""``sgl-entropy policy``: traces asked of a server, and their replays as a script meets them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.http.replies import MetaInfo

from sgl_entropy.cli import main
from sgl_entropy.cli.policy_record import header_of, request_of
from sgl_entropy.cli.running_server import TracedAnswer
from sgl_entropy.verify.policies import Svip
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import RequestTrace, TraceHeader
from sgl_entropy.verify.trace_file import TraceReader
from tests.drafter.tiny import write_tokenizer
from tests.scripted_server import Reply, Request, ScriptedServer, generated
from tests.verify.traces import HEADER, cycle, requests, simulated, write

RULE = EasdRule(1.0, 0.8, overlap=0.3)
INFO = {
    "model_path": "target",
    "speculative_draft_model_path": "drafter",
    "speculative_eagle_topk": 1,
    "speculative_num_draft_tokens": 5,
    "device": "cuda",
    "easd": RULE.to_dict(),
    "easd_relaxed_below": None,
}


def meta_of(request: RequestTrace) -> dict[str, Any]:
    """What a server says of a request."""
    cycles = request.cycles
    return {
        "prompt_tokens": 3,
        "completion_tokens": 1 + sum(c.emitted for c in cycles),
        "finish_reason": {"type": "length"},
        "spec_trace": [c.to_dict(4) for c in cycles],
        "spec_cycles": len(cycles),
        "spec_drafted": sum(c.verified for c in cycles),
        "spec_emitted": sum(c.emitted for c in cycles),
        "spec_accepted_by_position": [sum(c.accepted > at for c in cycles) for at in range(4)],
        "easd_checks": sum(c.checked for c in cycles),
        "easd_fires": sum(c.fired is not None for c in cycles),
    }


class TinyServer:
    """Answers ``/get_server_info`` and ``/generate``: the n-th request has the n-th trace."""

    def __init__(self, info: dict[str, Any], held: list[RequestTrace]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.refuse_from: int | None = None
        self._info, self._held = info, held
        self._lock = threading.Lock()
        self._http = ScriptedServer(script=self._reply).__enter__()
        self.url = self._http.url

    def _reply(self, request: Request) -> Reply:
        if request.method == "GET":
            return Reply.json(self._info)
        with self._lock:
            number = len(self.asked)
            if self.refuse_from is not None and number >= self.refuse_from:
                return Reply.error(400, "no more")
            self.asked.append(request.body)
        return generated([], meta_of(self._held[number]))

    def close(self) -> None:
        self._http.stop()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer and two files of prompts, three and two of them."""
    folder = tmp_path_factory.mktemp("policy")
    write_tokenizer(folder, 40)
    (folder / "math.txt").write_text("w3 w4\nw5\nw6 w7 w8\n")
    (folder / "chat.jsonl").write_text('{"turns": ["w9"]}\n{"turns": ["w10 w11"]}\n')
    return folder


@pytest.fixture
def server() -> Iterator[TinyServer]:
    held = list(simulated(replace(HEADER, rule=RULE), rule=RULE, count=5))
    tiny = TinyServer(INFO, [*held, *held])
    yield tiny
    tiny.close()


def record(folder: Path, server: TinyServer, out: Path, *more: str) -> int:
    words = ["policy", "record", "--server", server.url, "--out", str(out)]
    files = [str(folder / "math.txt"), str(folder / "chat.jsonl")]
    return main([*words, "--texts", *files, "--tokenizer", str(folder), *more])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(["policy", *words]) == 2
    return capsys.readouterr().err


def test_a_servers_traces_become_a_file(
    folder: Path, server: TinyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace"
    assert record(folder, server, out, "--max-new-tokens", "7", "--concurrency", "2") == 0
    assert "5 requests, 5 of them new" in capsys.readouterr().out
    assert all(
        body["sampling_params"]
        == {"max_new_tokens": 7, "temperature": 0.0, "custom_params": {"spec_trace": True}}
        for body in server.asked
    )
    # The prompts are in the tokenizer's chat template, as token ids.
    assert sorted(body["input_ids"] for body in server.asked) == [
        [3, 4],
        [5],
        [6, 7, 8],
        [9],
        [10, 11],
    ]
    reader = TraceReader(out)
    assert reader.header == replace(HEADER, rule=RULE)
    held = {request.rid: request for request in reader}
    assert sorted(held) == ["chat-0", "chat-1", "math-0", "math-1", "math-2"]
    assert held["math-2"].benchmark == "math"
    # And the record agrees with the rule that it was made under.
    assert main(["policy", "replay", str(out)]) == 0
    assert capsys.readouterr().out.count("it agrees") == 2


def test_an_interrupted_record_is_continued(
    folder: Path, server: TinyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trace"
    server.refuse_from = 2
    assert record(folder, server, out) == 2
    error = capsys.readouterr().err
    assert "math-2" in error
    assert "no more" in error
    assert "continue with --resume" in error
    assert [request.rid for request in TraceReader(out)] == ["math-0", "math-1"]
    server.refuse_from = None
    assert record(folder, server, out) == 2
    assert "exists already" in capsys.readouterr().err
    assert record(folder, server, out, "--resume", "--temperature", "1") == 2
    assert "temperature differ" in capsys.readouterr().err
    assert record(folder, server, out, "--resume") == 0
    assert "5 requests, 3 of them new" in capsys.readouterr().out
    assert len(server.asked) == 5
    assert record(folder, server, out, "--resume") == 0
    assert len(server.asked) == 5


def test_exact_verification_is_asked_for(folder: Path, tmp_path: Path) -> None:
    server = TinyServer(INFO, list(simulated(HEADER, count=5)))
    out = tmp_path / "trace"
    assert record(folder, server, out, "--exact", "--max-prompts", "1") == 0
    server.close()
    custom = [body["sampling_params"]["custom_params"] for body in server.asked]
    assert custom == [{"spec_trace": True, "easd": False}] * 2
    assert TraceReader(out).header.rule is None


def test_what_a_server_says_of_itself() -> None:
    plain: dict[str, Any] = {
        "speculative_draft_model_path": "drafter",
        "speculative_num_draft_tokens": 3,
    }
    assert header_of(plain, 0.5) == TraceHeader(None, "drafter", 2, 10, temperature=0.5)
    for given, stop in (
        ("off", None),
        ("svip", {"name": "svip"}),
        ("svip:factor=0.2", {"name": "svip", "factor": "0.2"}),
        ({"name": "off"}, None),
        ({"name": "svip", "limit": 0.4}, {"name": "svip", "limit": 0.4}),
    ):
        assert header_of(plain | {"speculative_draft_stop": given}, 0).draft_stop == stop
    told = {"draft_stop": {"name": "svip", "limit": 0.4}, "speculative_draft_stop": "svip"}
    assert header_of(plain | told, 0).draft_stop == told["draft_stop"]
    assert header_of(plain | told | {"draft_stop": None}, 0).draft_stop == {"name": "svip"}
    assert header_of(plain | {"device": "cpu"}, 0).pruned
    assert not header_of(plain | {"device": "cpu"}, 0, pruned=False).pruned
    relaxed = plain | {"easd": RULE.to_dict(), "easd_relaxed_below": 0.25}
    assert header_of(relaxed, 0).relaxed_below == 0.25
    assert header_of(relaxed, 0, exact=True).relaxed_below == 0
    for change, message in (
        ({"speculative_draft_model_path": None}, "serves no drafter"),
        ({"speculative_eagle_topk": 4}, "trees of 4 branches"),
        ({"speculative_num_draft_tokens": 1}, "expected at least 2"),
        ({"speculative_num_draft_tokens": None}, "expected at least 2"),
        ({"easd": "on"}, "expected a rule or null"),
        ({"easd": {"tau": 1}}, "unknown key tau"),
        ({"speculative_draft_stop": {"factor": 1}}, "expected a name or an object"),
    ):
        with pytest.raises(ValueError, match=message):
            header_of(plain | change, 0)


def test_what_a_server_says_of_a_request() -> None:
    def traced(meta: dict[str, Any]) -> RequestTrace:
        return request_of(TracedAnswer.of(MetaInfo.of({"meta_info": meta}), 4), "r0", None, HEADER)

    (request,) = requests([cycle(2), cycle(0), cycle(4, emitted=4)])
    assert traced(meta_of(request)) == request
    # A SGLang without our counters counts nothing; an answer of one token has no cycle.
    bare = {"completion_tokens": 9, "spec_trace": meta_of(request)["spec_trace"]}
    assert traced(bare) == request
    assert traced({"completion_tokens": 1}).cycles == ()
    ended = [cycle(1, emitted=1).to_dict(4), cycle(1).to_dict(4)]
    for name, wrong, message in (
        ("spec_trace", None, "returned no spec_trace"),
        ("spec_trace", [{}], "spec_trace, cycle 1: missing key"),
        ("spec_trace", {}, "returned no spec_trace"),
        ("spec_trace", ended, "cycle 1 ends the request, but others follow"),
        ("spec_drafted", 11, "drafted is 11, the trace has 12"),
        ("spec_emitted", 9, "emitted is 9, the trace has 8"),
        ("easd_fires", 1, "fires is 1, the trace has 0"),
    ):
        counted = bare if wrong is ended else meta_of(request)
        with pytest.raises(ValueError, match=message):
            traced(counted | {name: wrong})


def test_records_that_cannot_be_made(
    folder: Path, server: TinyServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, out = str(folder / "math.txt"), str(tmp_path / "trace")
    base = ("record", "--texts", texts, "--out", out, "--server")
    for more, message in (
        (("--concurrency", "0"), "--concurrency must be at least 1"),
        (("--max-new-tokens", "0"), "--max-new-tokens must be at least 1"),
        (("--temperature", "-1"), "--temperature must be a number from 0"),
        (("--temperature", "nan"), "--temperature must be a number from 0"),
        (("--texts", texts, texts), "the same name"),
        (("--texts", out), "no such file"),
    ):
        assert message in refused(capsys, *base, server.url, *more)
    assert "http://HOST:PORT" in refused(capsys, *base, "localhost:3")
    assert "--server http://127.0.0.1:9:" in refused(capsys, *base, "http://127.0.0.1:9")
    deaf = TinyServer({"model_path": "target"}, [])
    assert "serves no drafter" in refused(capsys, *base, deaf.url)
    deaf.close()
    assert not Path(out).exists()
    nowhere = str(tmp_path / "none" / "trace")
    words = ("record", "--texts", texts, "--server", server.url, "--tokenizer", str(folder))
    assert "No such file" in refused(capsys, *words, "--out", nowhere)


def test_replays_for_people_and_for_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = replace(HEADER, draft_stop={"name": "svip"})
    path = str(write(tmp_path / "trace", header, list(simulated(header, Svip()))))
    out = tmp_path / "out.json"
    words = ["policy", "replay", path, "--policy", "off", "--policy", "svip", "--policy", "switch"]
    assert main([*words, "--draft-cost", "0.1", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    assert list(found["policies"]) == ["off", "svip", "switch"]
    assert found["policies"]["svip"]["agrees"] is True
    assert found["costs"] == {"draft": 0.1, "row": 0.0, "cycle": 1.0}
    assert found["header"]["draft_stop"] == {"name": "svip"}
    page = capsys.readouterr().out
    assert "speed ratio" in page
    assert "the record: it agrees" in page
    assert main([*words, "--json", "-"]) == 0
    assert "speed_ratio" not in json.loads(capsys.readouterr().out)["policies"]["svip"]


def test_a_disagreement_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "trace", HEADER, requests([cycle(1), cycle(1, (0.1,) * 3)]))
    assert main(["policy", "replay", str(path)]) == 1
    assert "IT DISAGREES: request r0, cycle 2" in capsys.readouterr().out


def test_replays_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write(tmp_path / "trace", HEADER, requests([cycle(1)])))
    for more, message in (
        (("--policy", "magic"), "no policy is called 'magic'"),
        (("--row-cost", "1"), "need --draft-cost"),
        (("--draft-cost", "-1"), "--draft-cost must be a number from 0"),
        (("--json", str(tmp_path / "none" / "out")), "no such folder"),
    ):
        assert message in refused(capsys, "replay", path, *more)


def test_help_names_the_policies(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["policy", "replay", "--help"])
    shown = capsys.readouterr().out
    for name in ("off", "svip", "calibrated", "easd", "strictness", "switch"):
        assert f"\n  {name} " in shown
