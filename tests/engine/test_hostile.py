"""Requests with wrong values: each is refused or answered, and the server and others go on.

``sgl-entropy figures wrong-requests`` sends many more.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sgl_entropy_bench.figures.wrong_values import WrongRequest, outcome_of, wrong_requests

from tests.engine.conftest import Fleet
from tests.engine.prompts import MIXED

REQUESTS = 300
LENGTH = 24


def test_none_ends_the_server_or_harms_another(fleet: Fleet) -> None:
    client, server = fleet.client("edsd_chain"), fleet.server("edsd_chain")
    client.settle()

    def neighbour() -> list[int]:
        return client.generate(MIXED[0], LENGTH, ignore_eos=True)["output_ids"]

    def send(request: WrongRequest) -> str:
        return f"{outcome_of(client.http, request)} {request.name}"

    expected = neighbour()
    with ThreadPoolExecutor(4) as pool:
        beside = [pool.submit(neighbour) for _ in range(20)]
        outcomes = list(pool.map(send, wrong_requests(REQUESTS)))
    assert server.alive(), server.log_text()[-3000:]
    assert not [name for name in outcomes if not name.startswith(("2", "4"))]
    assert {tuple(answer.result()) for answer in beside} == {tuple(expected)}
    assert neighbour() == expected
    client.settle()
