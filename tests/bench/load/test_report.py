"""Result folders as pages and tables, and merged: built from records, opened in a browser."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sgl_entropy_bench.http.record import CUT, RequestRecord, read_records
from sgl_entropy_bench.http.routes import Output
from sgl_entropy_bench.load.judge import compare, metrics, verdict
from sgl_entropy_bench.load.judge.folders import read_folder, write_records
from sgl_entropy_bench.load.judge.judgement import judge
from sgl_entropy_bench.load.judge.measurement import Measurement, ServerFacts, Slo
from sgl_entropy_bench.load.page import html, plots, report
from sgl_entropy_bench.load.run.arms import LoadArm
from sgl_entropy_bench.load.run.campaign import Campaign
from sgl_entropy_bench.load.run.measure import LoadPlan
from sgl_entropy_bench.load.schedule.workload import Workload, WorkloadPrompt

from sgl_entropy.base.typed_json import as_json
from sgl_entropy.cli import main as command
from tests.scripted_server import ScriptedServer

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
               None)  # fmt: skip
BENCHMARKS = ("code", "maths")
COUNT, RAMP = 48, 6
PROMPTS = tuple(WorkloadPrompt(f"p{i}", BENCHMARKS[i % 2], f"prompt {i}") for i in range(90))
PLAN = LoadPlan(
    Workload(PROMPTS, (), "built-in prompts", len(PROMPTS), "d1"), Output(64), COUNT, RAMP
)
PAGE, TABLES = "report.html", "report.md"
SERVER = ServerFacts(
    "0.5.6.post2", "generate", "/generate, plain prompts", 1, {"model_path": "target"}
)
Json = dict[str, Any]
Change = Callable[[str, str, list[RequestRecord]], list[RequestRecord]]


def records_of(arm: str, load: str, rate: float | None, count: int = COUNT) -> list[RequestRecord]:
    """A run as a client writes it: ``rate`` requests a second, or two at a time."""
    arrivals, chance = random.Random(f"arrivals {load}"), random.Random(f"{arm} {load}")
    time, found = 0.0, []
    for i in range(count + 2 * RAMP):
        e2e = (2.0 if arm == "none" else 1.0) * chance.uniform(0.8, 1.2)
        time += e2e / 2 if rate is None else arrivals.expovariate(rate)
        phase = "ramp" if i < RAMP else "measured" if i < RAMP + count else "tail"
        record = RequestRecord(i, PROMPTS[i % 90].id, BENCHMARKS[i % 2], phase, time, time + 0.001)
        record.first, record.last = time + 0.1 * e2e, time + e2e
        record.chunks = [(record.first, 2), (time + e2e, 40)]
        record.prompt_tokens, record.completion_tokens, record.text_hash = 50, 40, f"text {i}"
        if arm != "none":
            record.cycles, record.emitted, record.drafted = 15, 40, 45
            record.accepted = [12 - i % 2, 8, 5]
        found.append(record)
    return found


def measured_of(arm: str, label: str, verb: str, plan: LoadPlan) -> Measurement:
    """What a client would have measured; one process used a tenth of a core."""
    opened = verb == "latency"
    return Measurement(
        arm=arm,
        load=label,
        expected=plan.requests,
        workload=plan.workload_facts(),
        schedule=plan.schedule_facts(),
        server=SERVER,
        output=plan.output,
        slo=plan.slo,
        asked_qps=2.0 if opened else None,
        concurrency=None if opened else int(label.partition("-")[2] or 2),
        started=1000.0,
        client_cpu=(0.1,),
    )


def write_folder(
    path: Path,
    verb: str = "latency",
    arms: Sequence[str] = ("none", "edsd"),
    loads: Sequence[str] = ("qps-2", "qps-3"),
    change: Change = lambda arm, load, held: held,
    plan: LoadPlan = PLAN,
    alter: Callable[[Json], object] = lambda report: None,
) -> Path:
    """A folder as a campaign leaves it; ``alter`` changes its result.json at last."""
    campaign = Campaign(verb, plan, tuple(LoadArm(arm, url="http://h:1") for arm in arms), path)
    for load in loads:
        for arm in arms:
            rate = float(load[4:]) if load.startswith("qps-") else None
            held = change(arm, load, records_of(arm, load, rate, plan.requests))
            write_records(path, (arm, load), held)
            kept = read_records(path / f"{arm}-{load}.jsonl")  # times are rounded
            campaign.results.append(judge(measured_of(arm, load, verb, plan), kept))
    campaign.compare()
    written = campaign.report().to_json()
    alter(written)
    (path / "result.json").write_text(json.dumps(written), encoding="utf-8")
    return path


def changed(path: Path, change: Callable[[Json], object]) -> None:
    """Change a folder's result.json."""
    held = json.loads((path / "result.json").read_text())
    change(held)
    (path / "result.json").write_text(json.dumps(held))


def failing(arm: str, load: str, held: list[RequestRecord]) -> list[RequestRecord]:
    """A fourth of edsd's measured requests fail at qps-2; two in the tail are cut."""
    if (arm, load) != ("edsd", "qps-2"):
        return held
    for record in held[RAMP : RAMP + COUNT : 4]:
        record.error, record.last = "status 503: <script>alert(1)</script>", None
    for record in held[-2:]:
        record.error, record.last = CUT, None
    return held


class Parsed(HTMLParser):
    """A page taken apart; fails where a tag is closed that is not open."""

    VOID = ("meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.figures: dict[str, list[tuple[str, dict[str, str]]]] = {}
        self.data: list[str] = []
        self._figure: list[tuple[str, dict[str, str]]] | None = None
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        held = {name: value or "" for name, value in attrs}
        self.tags.append((tag, held))
        if tag == "figure":
            self._figure = self.figures.setdefault(held["id"], [])
        elif self._figure is not None:
            self._figure.append((tag, held))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "figure":
            self._figure = None

    def handle_data(self, data: str) -> None:
        self.data.append(data.strip())

    def paths(self, figure: str, colour: str) -> list[list[tuple[float, float]]]:
        """The points of each line of this colour inside a plot's axes, in its coordinates."""
        return [
            [(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", held["d"])]
            for tag, held in self.figures[figure]
            if tag == "path" and "clip-path" in held and f"stroke: {colour}" in held["style"]
        ]


def reported(out: Path, *folders: Path) -> Parsed:
    assert report.main("report", folders, out) == 0
    return Parsed((out / PAGE).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def run1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms at two loads, with failed requests in one of them."""
    return write_folder(tmp_path_factory.mktemp("results") / "run1", change=failing)


@pytest.fixture(scope="module")
def page1(run1: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "deep" / "out"
    report.main("report", [run1], out)
    return out / PAGE


def test_the_page_has_every_plot_drawn_and_labelled(page1: Path) -> None:
    parsed = Parsed(page1.read_text(encoding="utf-8"))
    timelines = [f"timeline-{a}-qps-{q}" for q in (2, 3) for a in ("none", "edsd")]
    assert list(parsed.figures) == ["latency-rate", "cdf", "acceptance", *timelines]
    for name, inside in parsed.figures.items():
        assert [tag for tag, _ in inside].count("svg") == 1, name
        assert sum(tag == "path" and len(held.get("d", "")) > 20 for tag, held in inside) > 5, name
    for label in ("E2E latency (s)", "achieved rate (requests/s)", "share of requests",
                  "draft position", "tau (tokens a cycle)", "time since the start (s)",
                  "requests in flight", "Latency against rate", "edsd at qps-2"):  # fmt: skip
        assert label in parsed.data, label
    # Every arm has the same colour everywhere.
    for name, arm in zip(timelines, ("none", "edsd") * 2, strict=True):
        mine, other = html.COLOURS[:2] if arm == "none" else html.COLOURS[1::-1]
        assert parsed.paths(name, mine)
        assert not parsed.paths(name, other)


def test_the_page_is_self_contained(page1: Path) -> None:
    text = page1.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert {tag for tag, _ in parsed.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    )
    for tag, held in parsed.tags:
        for name, value in held.items():
            assert name not in ("src", "srcset", "data", "action"), tag
            assert "href" not in name or value.startswith("#"), (tag, value)
            assert not name.startswith("on"), tag
            assert "://" not in value, (tag, name, value)
            assert all(url.startswith("#") for url in re.findall(r"url\(['\"]?([^)]*)", value))
    assert "@import" not in text
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "prefers-color-scheme: dark" in style
    # References inside the page lead somewhere, and ids are unique.
    ids = [held["id"] for _, held in parsed.tags if "id" in held]
    assert len(ids) == len(set(ids))
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert used
    assert set(used) <= set(ids)


def test_failed_requests_are_shown(page1: Path) -> None:
    parsed = Parsed(page1.read_text(encoding="utf-8"))
    left = [paths[0] for c in html.COLOURS[:2] if (paths := parsed.paths("cdf", c))]
    (rect,) = [h for t, h in parsed.figures["cdf"] if t == "rect"][:1]
    none, edsd = (line[-1][1] for line in left)
    height = float(rect["height"])
    assert (edsd - none) / height * 1.02 == pytest.approx(0.25, abs=0.002)
    # Each of the two lines was drawn in the panel of its load, where the other arm did not fail.
    assert parsed.paths("cdf", html.COLOURS[1])[1][-1][1] == pytest.approx(
        parsed.paths("cdf", html.COLOURS[0])[1][-1][1]
    )
    crosses = [h for t, h in parsed.figures["timeline-edsd-qps-2"]
               if t == "use" and plots.RED in h.get("style", "")]  # fmt: skip
    assert len(crosses) == COUNT // 4 + 1  # and the key's
    assert "cut at the end" in parsed.data
    assert "status 503: <script>alert(1)</script>" in parsed.data
    assert f"{COUNT // 4} of {COUNT} requests failed" in " ".join(parsed.data)


def test_requests_in_flight_end_when_they_do() -> None:
    held = [
        RequestRecord(0, "p", "b", "measured", 0.0, sent=0.0, last=4.0),
        RequestRecord(1, "p", "b", "measured", 1.0, sent=1.0, chunks=[(2.0, 1)], error="broke off"),
        RequestRecord(2, "p", "b", "tail", 3.0, sent=3.0, error=CUT),
        RequestRecord(3, "p", "b", "measured", 3.5, error="never sent"),
    ]
    times, counts = plots._in_flight(held)
    assert dict(zip(times, counts, strict=True)) == {0.0: 1, 1.0: 2, 2.0: 1, 3.0: 2, 4.0: 0}


@pytest.mark.parametrize(
    ("verb", "loads", "figures", "header"),
    [
        ("throughput", ("batch-2", "batch-4"), ["throughput-concurrency", "cdf"], "speed-up"),
        ("capacity", ("capacity",), ["cdf"], "capacity, requests/s"),
        ("speed", ("batch-1",), ["cdf"], "code: speed-up, tau"),
        ("latency", ("qps-2",), ["cdf"], "E2E mean, s"),
    ],
)
def test_every_verb(
    verb: str, loads: Sequence[str], figures: list[str], header: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    parsed = reported(tmp_path, write_folder(tmp_path / "run", verb, loads=loads))
    found = [name for name in parsed.figures if not name.startswith("timeline")]
    assert found == [*figures, "acceptance"]
    printed = capsys.readouterr().out
    markdown = (tmp_path / TABLES).read_text(encoding="utf-8")
    for text in (printed, markdown, " ".join(parsed.data)):
        assert header in text
        assert "48 measured requests an arm and load" in text
    if verb == "capacity":
        (none, _) = read_folder(tmp_path / "run").run.results
        assert none.capacity is not None
        assert f"{none.capacity.value:.2f} ({none.capacity.low:.2f} to " in printed
    paper = "paper, " in markdown
    assert paper == (verb in ("latency", "throughput"))
    assert paper == ("Beside the paper" in parsed.data)


def test_whole_replies_of_servers_that_count_no_cycles(tmp_path: Path) -> None:
    def whole(arm: str, load: str, held: list[RequestRecord]) -> list[RequestRecord]:
        return [replace(r, first=None, chunks=[], cycles=None, emitted=None, accepted=None)
                for r in held]  # fmt: skip

    parsed = reported(tmp_path, write_folder(tmp_path / "run", change=whole))
    assert "acceptance" not in parsed.figures
    assert {"latency-rate", "cdf", "timeline-none-qps-2"} <= set(parsed.figures)


def test_a_partial_run_says_so_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(arm: str, load: str, held: list[RequestRecord]) -> list[RequestRecord]:
        if arm == "edsd":
            return held[: RAMP + 10] if load == "qps-2" else held[:RAMP]
        return held

    def alter(result: Json) -> None:
        result["partial"] = True

    folder = write_folder(tmp_path / "run", change=stopped, alter=alter)
    parsed = reported(tmp_path, folder)
    said = "PARTIAL: the run was interrupted or broke off; 4 measurements are there, 2 of them "
    where = next(i for i, text in enumerate(parsed.data) if text.startswith(said))
    assert where < parsed.data.index("E2E mean, s")
    assert said in capsys.readouterr().out
    assert said in (tmp_path / TABLES).read_text().split("| arm")[0]
    reason = f"edsd at qps-2: partial: 10 of {COUNT} measured requests ended"
    assert parsed.data.index(reason) < parsed.data.index("Beside the paper")
    assert "INVALID: 2 of 4 measurements are not valid." in parsed.data
    assert "timeline-edsd-qps-3" in parsed.figures


def test_a_fake_server_is_named_as_one(tmp_path: Path) -> None:
    def alter(result: Json) -> None:
        result["results"][0]["server"]["arguments"]["fake"] = True

    parsed = reported(tmp_path, write_folder(tmp_path / "run", loads=("qps-2",), alter=alter))
    assert "A fake server answered: this is no result of SGLang." in parsed.data
    assert ("strong", {}) in parsed.tags


HOSTILE = ("<img src=x onerror=alert(1)>", "_a|b $x^{$ ![x](y)", "\x1b[2J**n**`")
SCRIPT = "<script>alert(1)</script>"


def renamed(folder: Path, names: dict[str, str]) -> None:
    """Give arms other names, in the result and of the files."""

    def alter(result: Json) -> None:
        result["baseline"] = names[result["baseline"]]
        for held in result["results"]:
            old = folder / f"{held['arm']}-{held['load']}.jsonl"
            held["arm"] = names[held["arm"]]
            old.rename(folder / f"{held['arm']}-{held['load']}.jsonl")

    changed(folder, alter)


def test_what_comes_from_files_is_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def hostile(arm: str, load: str, held: list[RequestRecord]) -> list[RequestRecord]:
        for record in held:
            record.benchmark = HOSTILE[record.index % 2]
        held[RAMP].error = f"{SCRIPT} \ud800|\n\n# no"
        return held

    def alter(result: Json) -> None:
        result["results"][0]["workload"]["source"] = f"{SCRIPT}&amp;**"
        result["provenance"]["command"] = f"x\n{SCRIPT}"
        result["results"][0]["server"]["arguments"]["model_path"] = f'">{SCRIPT}'

    folder = write_folder(
        tmp_path / "<b>run", arms=("none", "one", "two"), change=hostile, alter=alter
    )
    renamed(folder, dict(zip(("none", "one", "two"), HOSTILE, strict=True)))
    parsed = reported(tmp_path, folder)
    assert {"script", "img", "b"}.isdisjoint({tag for tag, _ in parsed.tags})
    assert not any(name.startswith("on") for _, held in parsed.tags for name in held)
    assert not any("\x1b" in text or "\ud800" in text for text in parsed.data)
    # Shown as they are: in the table, in the plots' keys, on the axes.
    for name in HOSTILE[:2]:
        assert parsed.data.count(name) >= 5
    assert f"x {SCRIPT}" in parsed.data
    assert all(re.fullmatch(r"[\w.-]+", name) for name in parsed.figures)
    markdown = (tmp_path / TABLES).read_text(encoding="utf-8")
    assert re.search(r"<[a-z]", markdown) is None
    assert "![" not in markdown
    for lines in re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines.splitlines()}) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_several_folders_share_a_page(run1: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "run2", arms=("eagle3", "edsd"), loads=("qps-2",))
    parsed = reported(tmp_path, run1, other)
    ids = [held["id"] for _, held in parsed.tags if "id" in held]
    assert len(ids) == len(set(ids))
    assert {"cdf", "cdf-2", "timeline-edsd-qps-2", "timeline-edsd-qps-2-2"} <= set(parsed.figures)
    # edsd is the second arm of the page, although the first folder alone has a baseline.
    assert parsed.paths("timeline-edsd-qps-2-2", html.COLOURS[1])
    assert parsed.paths("timeline-eagle3-qps-2-2", html.COLOURS[2])
    assert "run1: INVALID: 1 of 4 measurements are not valid." in parsed.data
    assert not any(text.startswith("run2: INVALID") for text in parsed.data)


def test_dots_are_thinned_evenly(tmp_path: Path) -> None:
    many = 6000

    def quick(arm: str, load: str, held: list[RequestRecord]) -> list[RequestRecord]:
        return [replace(r, chunks=[], error="no" if r.index % 10 == 0 else "") for r in held]

    folder = write_folder(
        tmp_path / "run", arms=("edsd",), loads=("qps-2",), change=quick,
        plan=replace(PLAN, requests=many),
    )  # fmt: skip
    parsed = reported(tmp_path, folder)
    (dots,) = parsed.paths("timeline-edsd-qps-2", html.COLOURS[0])
    crosses = [h for t, h in parsed.figures["timeline-edsd-qps-2"]
               if t == "use" and plots.RED in h.get("style", "")]  # fmt: skip
    assert len(dots) // 2 + len(crosses) - 1 == plots.MOST_DOTS
    places = sorted({x for x, _ in dots})
    width = places[-1] - places[0]
    assert max(b - a for a, b in pairwise(places)) < 0.01 * width
    assert any(f"{plots.MOST_DOTS} of {many + 2 * RAMP} requests" in text for text in parsed.data)
    assert plots.thin(range(10), 4) == [0, 2, 5, 7]
    assert plots.thin([1, 2], 4) == [1, 2]


def rewrite(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def result_with(change: Callable[[Json], object]) -> Callable[[Path], object]:
    return lambda folder: changed(folder, change)


RECORDS = "edsd-qps-2.jsonl"


@pytest.mark.parametrize(
    ("damage", "file", "why"),
    [
        (lambda f: (f / "result.json").unlink(), "result.json", "not there"),
        (rewrite("result.json", '{"format": 2'), "result.json", "not a result"),
        (rewrite("result.json", "[]"), "result.json", "format 2, found list"),
        (result_with(lambda r: r.update(format=1)), "result.json", "format 2, found 1; another"),
        (result_with(lambda r: r.pop("results")), "result.json", "lacks results"),
        (
            result_with(lambda r: r["results"][0]["schedule"].pop("ramp")),
            "result.json",
            "schedule: lacks ramp",
        ),
        (result_with(lambda r: r["results"][1].pop("reasons")), "result.json", "lacks reasons"),
        (
            result_with(lambda r: r["results"].append(5)),
            "result.json",
            "results[2]: expected an object",
        ),
        (result_with(lambda r: r["results"].append(r["results"][0])), "result.json", "twice"),
        (result_with(lambda r: r["results"][0].update(arm="../x")), "result.json", "cannot name"),
        (lambda f: (f / RECORDS).unlink(), RECORDS, "records of edsd at qps-2 are missing"),
        (rewrite(RECORDS, '{"index": 1}\n{}\n'), RECORDS + ":1", "not a whole record"),
        (rewrite(RECORDS, '{"index": 1, "chunks": [5]}\n'), RECORDS + ":1", "not a whole record"),
        (rewrite(RECORDS, ""), RECORDS, f"0 measured requests, result.json counts {COUNT}"),
    ],
)
def test_broken_folders_are_refused(
    damage: Callable[[Path], object], file: str, why: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "run", loads=("qps-2",))
    damage(folder)
    for what in ("report", "merge"):
        with pytest.raises(ValueError, match=re.escape(why)) as caught:
            report.main(what, [folder, folder], tmp_path / "out")
        assert str(folder / file) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_last_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", loads=("qps-2",))
    with (folder / RECORDS).open("a") as file:
        file.write('{"index": 99, "pro')
    assert len(read_folder(folder).records["edsd", "qps-2"]) == COUNT + 2 * RAMP


def test_without_matplotlib_nothing_is_written(
    run1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert command(["bench", "report", str(run1), "--out", str(tmp_path / "out")]) == 2
    assert "pip install 'sgl-entropy[plots]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def clients(
    tmp_path: Path,
    shift: float = 0.25,
    change: Change = lambda a, q, h: h,
    plan: LoadPlan = PLAN,
) -> list[Path]:
    """One run's requests dealt to two clients; the second started ``shift`` seconds later."""
    folders = []
    for number in (0, 1):

        def dealt(
            arm: str, load: str, held: list[RequestRecord], number: int = number
        ) -> list[RequestRecord]:
            mine = change(arm, load, held)[number::2]
            off = number * shift
            return [
                replace(
                    r, index=i, process=i % 2, scheduled=r.scheduled - off, sent=r.sent - off,
                    first=r.first - off, last=None if r.last is None else r.last - off,
                    chunks=[(time - off, tokens) for time, tokens in r.chunks],
                )
                for i, r in enumerate(mine)
            ]  # fmt: skip

        def alter(result: Json, number: int = number) -> None:
            # Built from a whole plan, of which a client has half.
            for one in result["results"]:
                one["started"] = one.get("started", 1000.0) + number * shift
                one["expected"] = COUNT // 2
                mine = {"ramp": RAMP // 2, "stream": "ab"[number], "processes": 2}
                one["schedule"] |= mine

        name = f"client-{'ab'[number]}"
        folders.append(write_folder(tmp_path / name, change=dealt, plan=plan, alter=alter))
    return folders


def nearly(value: Any) -> Any:
    """For comparing figures that went through sums of times."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-6, abs=2e-6)
    if isinstance(value, dict):
        return {name: nearly(held) for name, held in value.items()}
    return [nearly(held) for held in value] if isinstance(value, list) else value


def test_merged_clients_have_the_figures_of_one_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "merged"
    # More digits than "1.00001 s", as people read it, shows: the numbers themselves are kept.
    slo = Slo(e2e=1.000008125, ttft=0.5)
    folders = clients(tmp_path, plan=replace(PLAN, slo=slo))
    assert command(["bench", "merge", *map(str, folders), "--out", str(out)]) == 0
    assert "qps-2" in capsys.readouterr().out
    merged = read_folder(out)
    assert merged.run.valid is True
    assert merged.run.loads == ["qps-2", "qps-3"]
    whole = {(a, q): records_of(a, q, float(q[4:])) for q in ("qps-2", "qps-3")
             for a in ("none", "edsd")}  # fmt: skip
    for (arm, load), held in whole.items():
        measured = [record for record in held if record.phase == "measured"]
        result = merged.result((arm, load))
        assert as_json(result.figures) == nearly(as_json(metrics.summary(measured, slo)))
        one = result.measurement
        assert (one.asked_qps, one.slo) == (4.0, slo)  # of two clients that asked 2 each
        assert [result.scheduled_qps, result.achieved_qps] == nearly(list(verdict.rates(measured)))
        assert one.shared_share is not None
        assert one.shared_share > 0.95
        assert one.client_cpu == (0.1, 0.1)
        base = [record for record in whole["none", load] if record.phase == "measured"]
        if arm != "none":
            assert as_json(result.against) == nearly(
                as_json(
                    compare.AgainstBaseline(
                        "none",
                        compare.paired(measured, base),
                        compare.paired(measured, base, metrics.ttft),
                        1.0,
                    )
                )
            )
        records = merged.records[arm, load]
        assert len({record.index for record in records}) == len(records) == COUNT + 2 * RAMP
        assert {record.process for record in records} == {0, 1, 2, 3}
        assert (one.expected, one.schedule.ramp, one.schedule.processes) == (COUNT, RAMP, 4)
        assert one.schedule.stream == "a+b"
    assert merged.run.merged is not None
    assert [one.stream for one in merged.run.merged] == ["a", "b"]
    given = json.loads((folders[1] / "result.json").read_text())["provenance"]
    assert merged.run.merged[1].provenance == given
    parsed = reported(tmp_path / "page", out)
    assert "timeline-edsd-qps-3" in parsed.figures
    assert "Merged: client-b" in parsed.data


def test_clients_that_did_not_share_the_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second began when the first was half way: their sum was never asked of the server."""
    folders = clients(tmp_path)
    for result in (later := json.loads((folders[1] / "result.json").read_text()))["results"]:
        result["started"] += 0.5 * COUNT / float(result["load"][4:])
    (folders[1] / "result.json").write_text(json.dumps(later))
    out = tmp_path / "merged"
    assert command(["bench", "merge", *map(str, folders), "--out", str(out)]) == 3
    assert "came while all clients were sending" in capsys.readouterr().out


def test_failures_of_one_client_are_failures_of_the_merged_run(tmp_path: Path) -> None:
    folders = clients(tmp_path, change=failing)
    missing = folders[1] / "none-qps-2.jsonl"
    missing.write_text("".join(missing.read_text().splitlines(keepends=True)[:20]))
    changed(folders[1], lambda r: r["results"][0].update(requests=20 - RAMP // 2))
    assert report.main("merge", folders, tmp_path / "merged") == 3
    result = read_folder(tmp_path / "merged").result(("edsd", "qps-2"))
    assert result.figures is not None
    assert result.figures.errors == COUNT // 4
    assert result.figures.e2e is not None
    assert result.figures.e2e.p90 is None
    assert f"{COUNT // 4} of {COUNT} requests failed" in result.verdict.reasons
    short = read_folder(tmp_path / "merged").result(("none", "qps-2"))
    there = COUNT // 2 + 20 - RAMP // 2
    assert f"partial: {there} of {COUNT} measured requests ended" in short.verdict.reasons
    assert short.partial is True


def test_prompts_that_another_client_may_have_brought_into_the_cache() -> None:
    held = [
        RequestRecord(0, "alone", "b", "measured", 0.0, sent=0.0, last=1.0),
        RequestRecord(1, "after", "b", "measured", 0.0, sent=0.0, last=1.0),
        RequestRecord(2, "after", "b", "measured", 2.0, sent=2.0, last=3.0),
        RequestRecord(3, "at once", "b", "measured", 0.0, sent=0.0, last=1.0),
        RequestRecord(4, "at once", "b", "measured", 0.5, sent=0.5, last=1.5),
        RequestRecord(5, "never sent", "b", "measured", 0.5),
    ]
    assert sorted(record.index for record in verdict.lone_uses(held)) == [0, 1]


def both(part: str, **changes: object) -> Callable[[Json], object]:
    """Changes a part of every result."""
    return lambda report: [one[part].update(changes) for one in report["results"]]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r.update(verb="speed"), "differ in verb: latency, speed"),
        (both("workload", source="other.jsonl"), "differ in source of none at qps-2: built-in"),
        (both("workload", prompts=80), "differ in prompts of none at qps-2: 90, 80"),
        (both("output", max_tokens=8), "differ in output of none at qps-2"),
        (both("schedule", seed=1), "differ in seed of none at qps-2: 0, 1"),
        (both("schedule", later="x"), "schedule: unknown keys: later"),
        (both("slo", e2e=2.0), "differ in limits"),
        (lambda r: r["results"].pop(), "differ in measurements"),
        (both("server", version="0.6"), "differ in version of none"),
        (both("schedule", stream="a"), "both of --stream a"),
        (lambda r: r.update(merged=[]), "merged already"),
        (lambda r: r["results"][0].pop("started"), "none at qps-2 measured nothing"),
    ],
)
def test_folders_that_are_no_clients_of_one_load(
    change: Callable[[Json], object], why: str, tmp_path: Path
) -> None:
    first, second = clients(tmp_path, plan=replace(PLAN, slo=Slo(e2e=1.0)))
    changed(second, change)
    with pytest.raises(ValueError, match=re.escape(why)) as caught:
        report.main("merge", [first, second], tmp_path / "out")
    assert str(second) in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda r: r.update(verb="capacity"), "only clients of an open"),
        (both("schedule", arrivals="trace"), "the same arrivals"),
        (both("server", command="python -m x"), "servers of its own"),
    ],
)
def test_runs_that_cannot_share_a_load(
    change: Callable[[Json], object], why: str, tmp_path: Path
) -> None:
    folders = clients(tmp_path)
    for folder in folders:
        changed(folder, change)
    with pytest.raises(ValueError, match=re.escape(why)):
        report.main("merge", folders, tmp_path / "out")


@pytest.mark.parametrize("left", [0, RAMP // 2])
def test_clients_that_measured_nothing(left: int, tmp_path: Path) -> None:
    """They broke off before the first measured request: with some of the ramp, or with nothing."""
    folders = clients(tmp_path, change=lambda arm, load, held: held[: 2 * left])
    with pytest.raises(ValueError, match=r"client-a: none at qps-2 measured nothing"):
        report.main("merge", folders, tmp_path / "out")
    for folder in folders:
        changed(folder, lambda r: r.update(results=[]))
    with pytest.raises(ValueError, match=r"client-a: measured nothing"):
        report.main("merge", folders, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_arms_and_loads_that_differ(tmp_path: Path) -> None:
    first, second = clients(tmp_path)
    renamed(second, {"none": "none", "edsd": "eagle3"})
    with pytest.raises(ValueError, match="differ in arms"):
        report.main("merge", [first, second], tmp_path / "out")
    other = write_folder(tmp_path / "other", loads=("qps-2", "qps-4"))
    with pytest.raises(ValueError, match="differ in loads"):
        report.main("merge", [first, other], tmp_path / "out")


def test_merge_overwrites_nothing_that_was_measured(tmp_path: Path) -> None:
    folders = clients(tmp_path)
    with pytest.raises(ValueError, match="at least two"):
        report.main("merge", folders[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="one of the folders"):
        report.main("merge", folders, folders[0])
    measured = write_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="holds a measured result"):
        report.main("merge", folders, measured)
    for _ in range(2):  # its own it may
        report.main("merge", folders, tmp_path / "out")


@pytest.mark.usefixtures("in_process")
def test_a_real_run(tmp_path: Path) -> None:
    """What the load tester writes today can be reported, whatever the helpers here build."""
    run = tmp_path / "run"
    with ScriptedServer("--ttft", "0.004", "--cycle", "0.002", "--output-tokens", "12") as server:
        words = ["--arms", f"edsd={server.url}", "--qps", "40,80", "--out", str(run)]
        words += ["--num-requests", "20", "--warmup", "0"]
        assert command(["bench", "latency", *words]) in (0, 3)
    parsed = reported(tmp_path / "page", run)
    assert {"latency-rate", "cdf", "acceptance", "timeline-edsd-qps-80"} <= set(parsed.figures)


MEASURE = """<script>
const boxes = [...document.querySelectorAll("figure")].map(figure => {
  const box = figure.querySelector("svg").getBoundingClientRect();
  const drawn = [...figure.querySelectorAll("path")].filter(path => {
    const size = path.getBBox();
    return size.width + size.height > 1 && !path.closest("defs");
  });
  return {id: figure.id, x: box.x, y: box.y, width: box.width, height: box.height,
    drawn: drawn.length};
});
const root = document.documentElement;
document.body.innerHTML = "<pre>" + JSON.stringify({boxes, height: root.scrollHeight,
  over: root.scrollWidth - root.clientWidth}) + "</pre>";
</script></body>"""


def browse(folder: Path, url: Path, *flags: str) -> str:
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--hide-scrollbars", f"--user-data-dir={folder / 'profile'}", *flags, url.as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.skipif(BROWSER is None, reason="no browser here: make browser installs one")
def test_a_browser_shows_the_plots(page1: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    size = "--window-size=1000,4000"
    copy = tmp_path / "measured.html"
    # The page itself allows no script.
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page1.read_text(encoding="utf-8"))
    copy.write_text(text.replace("</body>", MEASURE), encoding="utf-8")
    found = json.loads(
        re.search(r"<pre>(.*)</pre>", browse(tmp_path, copy, size, "--dump-dom"))[1]  # type: ignore[index]
    )
    assert len(found["boxes"]) == 7
    assert found["over"] == 0
    for scheme, paper in (("1", (1, 1, 1)), ("0", (21 / 255, 23 / 255, 27 / 255))):
        shot = tmp_path / f"{scheme}.png"
        browse(tmp_path, page1, size, f"--screenshot={shot}",
               f"--blink-settings=preferredColorScheme={scheme}")  # fmt: skip
        image = imread(shot)[:, :, :3]
        assert tuple(image[1, 1]) == pytest.approx(paper, abs=0.01)
        for box in found["boxes"]:
            assert box["width"] > 400, box
            assert box["height"] > 150, box
            assert box["drawn"] > 5, box
            left, top = math.ceil(box["x"]), math.ceil(box["y"])
            part = image[top : top + int(box["height"]), left : left + int(box["width"])]
            assert part.shape[0] > 150, "the window is too small for the page"
            inked = abs(part - paper).max(axis=2) > 0.3
            assert 0.01 < inked.mean() < 0.6, (scheme, box["id"])
            arms = [abs(part - [int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]).max(axis=2) < 0.1
                    for c in html.COLOURS[:2]]  # fmt: skip
            assert max(arm.sum() for arm in arms) > 20, (scheme, box["id"])
