"""Replays against answers worked out by hand, and against engines that are simulated."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sgl_entropy.base.typed_json import as_json
from sgl_entropy.verify.policies import CalibratedStop, DraftStep, DraftStop, NoStop, Svip
from sgl_entropy.verify.replay.ledger import ReplayCosts
from sgl_entropy.verify.replay.run import make, replay
from sgl_entropy.verify.replay.stop import StopReplay
from sgl_entropy.verify.rule import EasdRule
from sgl_entropy.verify.trace import CycleRecord, RequestTrace, TraceHeader
from tests.verify.traces import HEADER, cycle, requests, simulated, write

CALIBRATED = CalibratedStop((0.5, 1.5), (0.9, 0.6, 0.2), 0.25)
SETTINGS = {"edges": [0.5, 1.5], "acceptance": [0.9, 0.6, 0.2], "cost": 0.25}
STOPS: list[tuple[DraftStop, dict[str, Any] | None]] = [
    (NoStop(), None),
    (Svip(), {"name": "svip"}),
    (Svip(0.1, 0.4), {"name": "svip", "factor": 0.1, "limit": 0.4}),
    (CALIBRATED, {"name": "calibrated", **SETTINGS}),
]


def replayed(path: Path, words: list[str] | None = None, costs: ReplayCosts | None = None) -> Any:
    """The reports as `policy replay --json` writes them."""
    return replay(path, words or (), costs).to_dict()["policies"]


def one(
    tmp_path: Path,
    word: str,
    *cycles: CycleRecord,
    header: TraceHeader = HEADER,
    costs: ReplayCosts | None = None,
) -> dict[str, Any]:
    """The replay of one policy over a trace of one request."""
    path = tmp_path / "trace"
    path.unlink(missing_ok=True)
    write(path, header, requests(cycles))
    found: dict[str, Any] = replayed(path, [word], costs)[word]
    return found


def test_a_draft_stop_worked_out_by_hand(tmp_path: Path) -> None:
    unsure = (0.1, 0.7, 0.1, 0.9)  # Svip stops after the second token
    found = one(
        tmp_path,
        "svip",
        cycle(4, unsure),  # two of four accepted tokens are lost: 5 emitted become 3
        cycle(2, unsure),  # all that was accepted stands before the stop
        cycle(0, unsure),
        cycle(4),  # never stops
        cycle(3, unsure, emitted=3),  # the request ends at its third token, which is kept
        costs=ReplayCosts(draft=0.1, row=0.05, cycle=1.0),
    )
    assert found["cycles"] == 5
    assert found["drafted"] == {"recorded": 20, "under": 12}
    assert found["verified"] == {"recorded": 20, "under": 12}
    assert found["emitted"] == {"recorded": 17, "under": 15}
    assert found["draft_steps_saved"] == 0.4
    assert found["tokens_per_cycle"] == {"recorded": 3.4, "under": 3.0}
    assert found["cycles_that_lose_tokens"] == 1
    assert [row["cycles"] for row in found["depths"]] == [0, 4, 0, 1]
    # Five cycles take 5 + 20 * 0.15 = 8 steps for 17 tokens, or 5 + 12 * 0.15 = 6.8 for 15.
    assert found["speed_up"] == {"recorded": 2.125, "under": round(15 / 6.8, 4)}
    assert found["speed_ratio"] == round(15 / 6.8 * 8 / 17, 4)
    assert found["interval"] is None  # of one request
    # No stop was in force, and this is another policy.
    assert found["agrees"] is None


def test_a_calibrated_stop_worked_out_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    file.write_text(json.dumps(SETTINGS))
    # The path's 0.9 times the bin's 0.6 is 0.54, then 0.486, 0.4374, 0.3937.
    bins = cycle(4, (1.0,) * 4)
    depths = {0.25: 4, 0.4: 4, 0.45: 3, 0.5: 2, 0.6: 1}
    for cost, depth in depths.items():
        found = one(tmp_path, f"calibrated:table={file},cost={cost}", bins)
        assert found["drafted"]["under"] == depth, cost
    assert one(tmp_path, f"calibrated:table={file}", bins)["drafted"]["under"] == 4
    file.write_text(json.dumps({"draft_stop": SETTINGS, "date": "today"}))
    assert one(tmp_path, f"calibrated:table={file}", bins)["drafted"]["under"] == 4


class Third:
    """A new idea: stop at the third token."""

    def stops(self, step: DraftStep) -> Tensor:
        return torch.full_like(step.entropy, step.depth == 3, dtype=torch.bool)


def test_any_draft_stop_can_be_replayed() -> None:
    held = StopReplay(Third(), HEADER)
    for request in requests([cycle(4), cycle(1)], [], [cycle(3)]):
        held.add(request)
    figures = as_json(held.report(None))
    assert figures["drafted"] == {"recorded": 12, "under": 9}
    assert figures["emitted"] == {"recorded": 11, "under": 10}
    assert figures["requests"] == 3


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("recorded", STOPS, ids=lambda held: str(held[1] and held[1]["name"]))
@pytest.mark.parametrize("seed", range(3))
def test_the_record_of_an_engine_agrees_with_its_own_policy(
    tmp_path: Path, recorded: tuple[DraftStop, dict[str, Any] | None], pruned: bool, seed: int
) -> None:
    stop, settings = recorded
    header = replace(HEADER, draft_stop=settings, pruned=pruned)
    held = list(simulated(header, stop, pruned=pruned, seed=seed))
    policies = replayed(write(tmp_path / "trace", header, held))
    (found,) = policies.values()
    assert found["agrees"] is True
    counts = [sum(getattr(c, name) for r in held for c in r.cycles) for name in ("verified",)]
    assert found["verified"] == {"recorded": counts[0], "under": counts[0]}
    assert found["emitted"]["recorded"] == found["emitted"]["under"]
    if not pruned:
        assert found["drafted"] == found["verified"]
        assert found["draft_steps_saved"] == 0


@pytest.mark.parametrize("seed", range(3))
def test_off_reproduces_the_record(tmp_path: Path, seed: int) -> None:
    """Whatever was in force: without a policy of its own a replay changes nothing."""
    for stop, settings in STOPS:
        header = replace(HEADER, draft_stop=settings, rule=EasdRule(1.0, 1.0))
        held = list(simulated(header, stop, header.rule, seed=seed))
        path = write(tmp_path / f"trace-{id(settings)}", header, held)
        found = replayed(path, ["off"])["off"]
        cycles = [c for r in held for c in r.cycles]
        for name in ("verified", "emitted"):
            total = sum(getattr(c, name) for c in cycles)
            assert found[name] == {"recorded": total, "under": total}
        assert found["cycles"] == len(cycles)
        assert found["cycles_that_lose_tokens"] == 0
        assert found["agrees"] is (True if settings is None else None)
        assert found["beyond_the_record"] == sum(c.verified < 4 for c in cycles)


def test_a_record_that_disagrees_is_named(tmp_path: Path) -> None:
    header = replace(HEADER, draft_stop={"name": "svip"})
    good, longer, shorter = cycle(1, (0.1, 0.7)), cycle(1, (0.1, 0.7, 0.1)), cycle(1, (0.1, 0.1))
    assert one(tmp_path, "svip", good, header=header)["agrees"] is True
    found = one(tmp_path, "svip", good, longer, shorter, header=header)
    assert found["agrees"] is False
    assert found["disagreement"] == (
        "request r0, cycle 2: the policy drafts 2 tokens, the record has verified 3"
    )
    found = one(tmp_path, "svip", good, shorter, header=header)
    assert "cycle 2: the policy drafts 4 tokens, the record has verified 2" in found["disagreement"]
    # Pruned, a record may be shorter than the chain, never longer.
    header = replace(header, pruned=True)
    assert one(tmp_path, "svip", good, shorter, header=header)["agrees"] is True
    assert one(tmp_path, "svip", longer, header=header)["agrees"] is False
    # At the limit of 0.6 nats either side is right, once values are rounded.
    at_limit = [cycle(1, (0.1, 0.600001)), cycle(1, (0.1, 0.599999, 0.1, 0.1))]
    assert one(tmp_path, "svip", *at_limit, header=replace(header, pruned=False))["agrees"] is True


def test_pruned_records_are_short_of_what_a_policy_would_draft(tmp_path: Path) -> None:
    header = replace(HEADER, pruned=True)
    held = (cycle(1, (0.1, 0.1)), cycle(2, (0.1, 0.7, 0.1)), cycle(0, ()))
    found = one(tmp_path, "svip", *held, header=header)
    # Four tokens each were drafted; only the second cycle is known to have stopped, at two.
    assert found["drafted"] == {"recorded": 12, "under": 10}
    assert found["verified"] == {"recorded": 5, "under": 4}
    assert found["beyond_the_record"] == 2


EASD = replace(HEADER, rule=EasdRule(2.0, 2.0))


def test_easd_worked_out_by_hand(tmp_path: Path) -> None:
    hot: dict[str, Any] = {"draft_entropy": (0.1, 1.2, 2.2, 3.2)}
    entropy = (0.1, 1.3, 2.3, 3.3, 0.0)
    # Fires at the second token above 1 nat, at the third above 2, at the fourth above 3.
    found = one(
        tmp_path,
        "easd:target_entropy=1,draft_entropy=1",
        cycle(4, target_entropy=entropy, **hot),  # four positions reached: 5 tokens become 2
        cycle(1, target_entropy=entropy, **hot),  # the rejected token itself is checked, too
        cycle(0, target_entropy=entropy, **hot),  # only the first is reached
        cycle(4, target_entropy=entropy, overlap=(0.4,) * 4, **hot),  # too little in common
        costs=ReplayCosts(0.0),
    )
    assert (found["checked"], found["fired"]) == (2 + 2 + 1 + 4, 2)
    assert found["fired_on_accepted"] == 1
    assert found["emitted"] == {"recorded": 13, "under": 10}
    assert found["speed_ratio"] == round(10 / 13, 4)
    rows = {row["nats"]: row for row in found["by_threshold"]}
    assert [rows[nats]["fired"] for nats in (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)] == [2, 1, 1, 1, 1, 0]
    assert [rows[nats]["checked"] for nats in (1.0, 2.0, 3.0, 4.0)] == [9, 10, 11, 11]
    assert rows[2.0]["tokens_per_cycle"] == (3 + 2 + 1 + 5) / 4
    assert found["agrees"] is None


def test_easd_checks_only_what_is_accepted_if_asked(tmp_path: Path) -> None:
    entropies: dict[str, Any] = {"draft_entropy": (3.0,) * 4, "target_entropy": (3.0,) * 5}
    held = (cycle(0, **entropies), cycle(4, **entropies))
    assert one(tmp_path, "easd", *held)["fired"] == 2
    found = one(tmp_path, "easd:accepted_only=true", *held)
    assert (found["checked"], found["fired"]) == (1, 1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("only", [False, True])
def test_an_engines_checks_and_fires_agree_with_its_rule(
    tmp_path: Path, only: bool, seed: int
) -> None:
    # A threshold of a third is met by no tenth, one of 0.3 by three of ten.
    rule = EasdRule(1.0, 0.8, overlap=0.3, accepted_only=only)
    header = replace(HEADER, rule=rule)
    held = list(simulated(header, rule=rule, seed=seed))
    path = write(tmp_path / "trace", header, held)
    policies = replayed(path)
    assert list(policies) == ["off (as recorded)", "easd (as recorded)"]
    found = policies["easd (as recorded)"]
    assert found["agrees"] is True
    assert found["fired"] == sum(c.fired is not None for r in held for c in r.cycles) > 5
    assert found["checked"] == sum(c.checked for r in held for c in r.cycles)
    assert found["emitted"]["recorded"] == found["emitted"]["under"]
    higher = replayed(path, ["easd:target_entropy=1.5"])["easd:target_entropy=1.5"]
    assert higher["agrees"] is None
    assert higher["beyond_the_record"] > 0
    assert "recorded under another rule" in higher["notes"][1]
    # Whether a token that fired would have been accepted, only an exact record tells.
    assert found["fired_on_accepted"] is None


def test_a_fire_that_was_missed_is_named(tmp_path: Path) -> None:
    hot: dict[str, Any] = {"draft_entropy": (3.0,) * 4, "target_entropy": (3.0,) * 5}
    good = cycle(0, checked=1, fired=0, **hot)
    found = one(tmp_path, "easd", good, cycle(2, checked=3, **hot), header=EASD)
    assert found["agrees"] is False
    assert found["disagreement"] == (
        "request r0, cycle 2: the rule checks 1 positions and fires at 0, the record has 3 and none"
    )
    # A third of the tokens, written with six decimals, is still a third.
    third = replace(HEADER, top_n=3, rule=EasdRule(top_n=3, overlap=1 / 3))
    held = cycle(0, checked=1, fired=0, overlap=(0.333333,) * 4, **hot)
    assert one(tmp_path, "easd", held, header=third)["agrees"] is True


def test_relaxed_acceptance_worked_out_by_hand(tmp_path: Path) -> None:
    sure = (0.2, 0.2, 0.2, 0.2, 0.2)
    found = one(
        tmp_path,
        "strictness:below=0.5",
        # The second token is not the target's, but has 0.1 of a sure target; so has the third;
        # the fourth has too little.
        cycle(1, target_prob=(0.9, 0.1, 0.1, 0.01), target_entropy=sure),
        # Behind a relaxed token, one with more than half stands by itself.
        cycle(0, target_prob=(0.1, 0.6, 0.01, 0.9), target_entropy=(0.2, 0.9, 0.9, 0.9, 0.9)),
        # The target is not sure enough, or the token too unlikely.
        cycle(0, target_prob=(0.1, 0.9, 0.9, 0.9), target_entropy=(0.6, 0.2, 0.2, 0.2, 0.2)),
        cycle(0, target_prob=(0.08, 0.9, 0.9, 0.9), target_entropy=sure),
        cycle(4, target_entropy=sure),
        # Nothing is known behind the end of a request.
        cycle(1, target_prob=(0.9, 0.1, 0.1, 0.1), target_entropy=sure, emitted=1),
    )
    assert found["cycles_that_go_on"] == 2
    assert found["relaxed_tokens"] == 3
    assert found["tokens_gained"] == 4
    assert found["emitted"] == {"recorded": 2 + 1 + 1 + 1 + 5 + 1, "under": 4 + 3 + 1 + 1 + 5 + 1}
    assert found["fired"] == found["tokens_lost"] == 0
    never = one(tmp_path, "strictness:below=0", cycle(1, target_prob=(0.9, 0.1, 0.1, 0.01)))
    assert (never["relaxed_tokens"], never["tokens_gained"]) == (0, 0)


def test_strictness_with_easd_above(tmp_path: Path) -> None:
    hot: dict[str, Any] = {"draft_entropy": (0.1, 0.1, 3.0, 3.0)}
    held = cycle(4, target_entropy=(0.2, 0.2, 3.0, 3.0, 0.2), **hot)
    after = cycle(
        1, target_prob=(0.9, 0.1, 0.9, 0.9), target_entropy=(0.2, 0.2, 3.0, 3.0, 3.0), **hot
    )
    fired = cycle(2, checked=3, fired=2, target_entropy=(0.2, 0.2, 3.0, 3.0, 3.0), **hot)
    found = one(tmp_path, "strictness:easd=true", held, after, fired)
    assert found["fired"] == 3
    assert found["tokens_lost"] == 2
    assert found["tokens_gained"] == 1
    assert found["emitted"] == {"recorded": 5 + 2 + 3, "under": 3 + 3 + 3}
    assert one(tmp_path, "strictness", held, after)["fired"] == 0


def test_drafters_switch_with_hysteresis(tmp_path: Path) -> None:
    def at(nats: float, accepted: int = 1) -> CycleRecord:
        # Only what was emitted counts: the entropies behind are those of a text not written.
        emitted = (nats,) * (accepted + 1)
        return cycle(accepted, target_entropy=(*emitted, *(9.0,) * (4 - accepted)))

    found = one(
        tmp_path, "switch:down=1,up=2", at(2.5), at(1.5, 3), at(0.5), at(1.5), at(1.5), at(2.5)
    )
    assert found["switches"] == 2
    assert found["by_drafter"] == [
        {"drafter": "small", "cycles": 4, "share": 0.6667, "tokens_per_cycle": 2.0},
        {"drafter": "large", "cycles": 2, "share": 0.3333, "tokens_per_cycle": 3.0},
    ]
    # Without settings: the thresholds of a server without --speculative-drafter-switch, 1 and 1.5.
    cycles = (at(1.6), at(0.9), at(1.4), at(1.4))
    assert one(tmp_path, "switch", *cycles) == one(tmp_path, "switch:down=1,up=1.5", *cycles)
    assert one(tmp_path, "switch", *cycles)["switches"] == 2
    found = one(tmp_path, "switch:down=1,up=2,start=large", at(1.5), at(1.5))
    assert (found["switches"], found["by_drafter"][0]["tokens_per_cycle"]) == (0, None)


def test_an_interval_of_paired_requests(tmp_path: Path) -> None:
    held = list(simulated(HEADER, count=40))
    path = write(tmp_path / "trace", HEADER, held)
    words = ["off", "svip", "svip:factor=0.15,limit=0.6"]
    policies = replayed(path, words, ReplayCosts(0.2))
    assert policies["off"]["interval"] == [1.0, 1.0]
    for word in words[1:]:
        low, high = policies[word]["interval"]
        assert low < policies[word]["speed_ratio"] < high
    # The same requests on both sides: what they share cancels out.
    assert (
        policies[words[2]]["interval"]
        == replayed(path, words[2:], ReplayCosts(0.2))[words[2]]["interval"]
    )
    saved = [policies[word]["draft_steps_saved"] for word in words]
    assert saved[0] == 0
    assert saved[1] > saved[2] > 0


def test_a_stop_that_is_not_known_here(tmp_path: Path) -> None:
    header = replace(HEADER, draft_stop={"name": "oracle"})
    found = one(tmp_path, "svip", cycle(1), header=header)
    assert found["agrees"] is None
    assert "no draft stop is called 'oracle'" in found["notes"][-1]
    with pytest.raises(ValueError, match="no draft stop is called 'oracle'"):
        replay(tmp_path / "trace")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("magic", "no policy is called 'magic'; there are off, svip"),
        ("svip:factor", "expected NAME:KEY=VALUE.*found 'factor'"),
        ("svip:factor=1,factor=2", "each key once"),
        ("svip:factor=much", "svip: factor must be a number, found 'much'"),
        ("svip:factor=nan", "factor must be a number"),
        ("svip:factor=-1", "factor and limit must be above 0"),
        ("svip:tau=1", "svip: unknown key tau; its keys are factor, limit"),
        ("off:factor=1", "off: unknown key factor; it has none"),
        ("calibrated", "expected table=FILE"),
        ("calibrated:edges=12,acceptance=123,cost=0.5", "expected table=FILE"),
        ("easd:overlap=2", "overlap must be a share"),
        ("easd:accepted_only=maybe", "accepted_only must be true or false"),
        ("easd:top_n=5", "easd: unknown key top_n"),
        ("strictness:eps=2", "eps and delta must be shares"),
        ("strictness:below=-1", "below must be from 0"),
        ("strictness:target_entropy=2", "unknown key target_entropy"),
        ("switch:down=2,up=1", "down < up"),
        ("switch:start=big", "start must be one of small, large"),
    ],
)
def test_policies_that_are_none(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(word, HEADER)


def test_tables_that_are_none(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    for text, message in (
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"draft_stop": 3}', "expected an object"),
        ('{"edges": [1]}', "cost=TOKENS is missing"),
        ('{"edges": [1], "cost": 0.5}', "expected table=FILE"),
        (json.dumps(SETTINGS | {"edges": [2, 1]}), "edges must rise"),
        (json.dumps(SETTINGS | {"edges": ["a", "b"]}), "expected table=FILE"),
        (json.dumps(SETTINGS | {"cost": 2}), "must be shares"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            make(f"calibrated:table={file}", HEADER)
    with pytest.raises(OSError, match="No such file"):
        make("calibrated:table=none", HEADER)


def test_what_a_trace_does_not_hold(tmp_path: Path) -> None:
    for header, word, message in (
        (replace(HEADER, top_n=None), "easd", "does not say of how many tokens"),
        (replace(HEADER, relaxed_below=0.3), "strictness", "relaxed below 0.3 nats"),
        (
            replace(HEADER, rule=EasdRule(0.5, 0.5, normalised=True)),
            "easd",
            "entropies in nats, not normalised",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            make(word, header)
    path = write(tmp_path / "trace", HEADER, [RequestTrace("r", None, ())])
    for word in ("off", "easd", "strictness", "switch"):
        with pytest.raises(ValueError, match="holds no verify cycle"):
            replay(path, [word])


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ((-1, 0, 1), "--draft-cost must be a number from 0"),
        ((0, float("nan"), 1), "--row-cost must be a number"),
        ((0, 0, 0), "--cycle-cost must be above 0"),
    ],
)
def test_costs_that_are_none(costs: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayCosts(*costs)
