"""Trace files: what is written is read, and what a trace cannot hold is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import TraceHeader
from sgl_entropy.verify.trace_file import TraceReader, TraceWriter
from tests.verify.traces import HEADER, cycle, requests, simulated, write

Change = Callable[[dict[str, Any]], object]


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    rule = EasdRule(1.0, 1.0, overlap=0.3)
    header = replace(
        HEADER,
        rule=rule,
        draft_stop={"name": "svip", "factor": 0.15},
        pruned=True,
        relaxed_below=0.25,
    )
    held = [*simulated(header, rule=rule, pruned=True), *requests([])]
    path = write(tmp_path / "trace", header, held)
    reader = TraceReader(path)
    assert reader.header == header
    assert list(reader) == held
    assert list(reader) == held  # once more from the beginning
    line = json.loads(path.read_bytes().splitlines()[1])["cycles"][0]
    assert line["verified"] < 4
    assert line["draft_prob"][line["verified"] :] == [None] * (4 - line["verified"])
    assert len(line["target_entropy"]) == 5


def test_reading_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, sgl_entropy.verify.trace_file; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_interrupted_trace_is_gone_on_with(tmp_path: Path) -> None:
    first, second, third = requests([cycle(1)], [cycle(2)], [cycle(3)])
    path = write(tmp_path / "trace", HEADER, [first, second])
    with pytest.raises(ValueError, match="exists already"):
        TraceWriter(path, HEADER)
    with pytest.raises(ValueError, match="temperature differ"):
        TraceWriter(path, replace(HEADER, temperature=1.0), append=True)
    # The second line broke off.
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"line 3: not JSON.*breaks off here"):
        list(TraceReader(path))
    with TraceWriter(path, HEADER, append=True) as trace:
        assert trace.rids == {"r0"}
        with pytest.raises(ValueError, match="r0 comes twice"):
            trace.add(first)
        trace.add(third)
    assert [request.rid for request in TraceReader(path)] == ["r0", "r2"]
    other = tmp_path / "other"
    other.write_text("no trace at all")
    with pytest.raises(ValueError, match="line 1: not JSON"):
        TraceWriter(other, HEADER, append=True)
    assert other.read_text() == "no trace at all"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.update(kind="x"), "expected the header"),
        (lambda h: h.update(format=2), "format 2 is not known"),
        (lambda h: h.pop("top_n"), "lacks top_n"),
        (lambda h: h.update(more=1), "unknown keys: more"),
        (lambda h: h.update(target=3), "target: expected a string, found int 3"),
        (lambda h: h.update(draft_tokens=0), "draft_tokens must be a whole number from 1"),
        (
            lambda h: h.update(draft_tokens=True),
            "draft_tokens: expected a whole number, found bool True",
        ),
        (lambda h: h.update(top_n=1.5), "top_n: expected a whole number"),
        (lambda h: h.update(rule=[]), "rule: expected an object"),
        (lambda h: h.update(rule={"tau": 1}), "rule: unknown keys: tau"),
        (lambda h: h.update(rule={"top_n": 5}), "top_n 10 is not that of the rule, 5"),
        (lambda h: h.update(draft_stop="svip"), "draft_stop: expected an object"),
        (lambda h: h.update(draft_stop={"factor": 1}), 'draft_stop must be an object with "name"'),
        (lambda h: h.update(temperature=-1), "temperature must be a number from 0"),
        (lambda h: h.update(pruned=1), "pruned: expected true or false, found int 1"),
        (lambda h: h.update(relaxed_below=None), "relaxed_below: expected a number, found null"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    held = HEADER.to_dict()
    change(held)
    path = tmp_path / "trace"
    path.write_text(json.dumps(held) + "\n")
    with pytest.raises(ValueError, match=message) as error:
        TraceReader(path)
    assert f"{path}, line 1: " in str(error.value)


def _cycle(change: Change) -> Change:
    return lambda request: change(request["cycles"][1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(rid=""), "rid must be a string"),
        (lambda r: r.update(benchmark=1), "benchmark must be a string or null"),
        (lambda r: r.update(cycles={}), "cycles must be a list"),
        (lambda r: r["cycles"].append(3), "cycle 3: expected an object, found 3"),
        (lambda r: r.update(more=1), "unknown key more"),
        (_cycle(lambda c: c.pop("fired")), "cycle 2: missing key fired"),
        (_cycle(lambda c: c.update(more=1)), "cycle 2: unknown key more"),
        (_cycle(lambda c: c.update(verified=5)), "verified must be at most draft_tokens"),
        (_cycle(lambda c: c.update(verified=True)), "verified must be a whole number"),
        (_cycle(lambda c: c.update(verified=2)), "null after the 2 verified tokens"),
        (_cycle(lambda c: c.update(accepted=4)), r"accepted must be at most verified \(3\)"),
        (_cycle(lambda c: c.update(emitted=3)), r"emitted must be at most accepted \+ 1 \(2\)"),
        (_cycle(lambda c: c.update(emitted=0)), "emitted must be a whole number from 1"),
        (_cycle(lambda c: c.update(checked=4)), "checked must be at most verified"),
        (_cycle(lambda c: c.update(fired=2)), "fired must be at most checked - 1"),
        (_cycle(lambda c: c.update(fired=0, checked=1)), "accepted must be at most fired"),
        (_cycle(lambda c: c.update(fired=2, checked=3)), "accepted 1 ends before the position"),
        (_cycle(lambda c: c.update(overlap=0.5)), "overlap must be a list of 4, found 0.5"),
        (_cycle(lambda c: c["draft_prob"].pop()), "draft_prob must be a list of 4, found one of 3"),
        (_cycle(lambda c: c["target_entropy"].pop()), "target_entropy must be a list of 5"),
        (_cycle(lambda c: c["draft_prob"].__setitem__(1, None)), r"draft_prob\[1\] must be"),
        (_cycle(lambda c: c["draft_prob"].__setitem__(1, 1.1)), r"from 0 to 1, found 1.1"),
        (_cycle(lambda c: c["target_prob"].__setitem__(0, True)), r"target_prob\[0\] must be"),
        (_cycle(lambda c: c["overlap"].__setitem__(2, -0.5)), r"overlap\[2\] must be"),
        (_cycle(lambda c: c["draft_entropy"].__setitem__(0, "1")), r"draft_entropy\[0\] must be"),
        (_cycle(lambda c: c["target_entropy"].__setitem__(3, -1)), r"target_entropy\[3\] must be"),
    ],
)
def test_requests_that_are_refused(tmp_path: Path, change: Change, message: str) -> None:
    good, bad = (
        request.to_dict(4) for request in requests([cycle(1)], [cycle(2), cycle(1, (0.1,) * 3)])
    )
    change(bad)
    path = tmp_path / "trace"
    lines = (HEADER.to_dict(), good, bad)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ValueError, match=message) as error:
        list(TraceReader(path))
    assert f"{path}, line 3: " in str(error.value)


def test_lines_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    good = json.dumps(requests([cycle(1)])[0].to_dict(4)).encode()
    header = json.dumps(HEADER.to_dict()).encode()
    cycles = [cycle(1, emitted=1).to_dict(4), cycle(1).to_dict(4)]
    ended = {"rid": "r1", "benchmark": None, "cycles": cycles}
    for line, message in (
        (good, "line 3: rid r0 comes twice"),
        (b"", "line 3: not JSON"),
        (b"[]", r"line 3: expected an object, found \[\]"),
        (b"\xff", "line 3: not JSON"),
        (good.replace(b"0.9", b"NaN", 1), "line 3: NaN is not a number"),
        (good.replace(b"0.9", b"1e999", 1), r"line 3: cycle 1: draft_prob\[0\] must be"),
        (json.dumps(ended).encode(), "line 3: cycle 1 ends the request, but others follow"),
    ):
        path.write_bytes(b"\n".join([header, good, line, b""]))
        with pytest.raises(ValueError, match=message):
            list(TraceReader(path))
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty; expected the header"):
        TraceReader(path)
    with pytest.raises(OSError, match="No such file"):
        TraceReader(tmp_path / "none")


def test_a_header_without_what_is_not_known(tmp_path: Path) -> None:
    header = TraceHeader(None, None, 1, None)
    assert TraceReader(write(tmp_path / "trace", header, [])).header == header
