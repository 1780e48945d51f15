"""Answers of ``/generate``: every event holds all text and ids so far."""

from __future__ import annotations

import time

from sgl_entropy_bench.fakeserver.job import Job
from sgl_entropy_bench.fakeserver.wire import Json, dumps


class NativeJob(Job):
    """A request to ``/generate``."""

    def prepare(self) -> None:
        # completion_tokens comes last, so that an event is written without the json module.
        self._written_ids = ",".join(map(str, self.ids)).encode()
        self._meta = dumps(self._meta_info(None)).rstrip(b"0}")

    def payloads(self, finish: Json | None) -> list[bytes]:
        if finish is not None or self.fault == "no-usage":
            return [dumps(self.whole(finish))]
        text = self.text()
        # An id is as wide as a word.
        ids = self._written_ids[: len(text)]
        return [
            b'{"text":"%b","output_ids":[%b],"meta_info":%b%d}}'
            % (text, ids, self._meta, self.made)
        ]

    def whole(self, finish: Json | None) -> Json:
        return {
            "text": self.text().decode(),
            "output_ids": self.ids[: self.made],
            "meta_info": self._meta_info(finish),
        }

    def _meta_info(self, finish: Json | None) -> Json:
        meta: Json = {
            "id": self.ask.rid,
            "finish_reason": finish,
            "prompt_tokens": self.ask.prompt_tokens,
            "weight_version": "default",
            "cached_tokens": self.cached_tokens,
            "dp_rank": self.rank.index,
            "completion_tokens": self.made,
        }
        if self.fault == "no-usage":
            del meta["prompt_tokens"], meta["completion_tokens"]
        if finish is not None:
            meta["e2e_latency"] = time.monotonic() - self.arrived_s
            if self.options.depth:
                meta |= self._speculation()
        return meta

    def _speculation(self) -> Json:
        counters = self.tally.to_dict()
        cycles = counters["cycles"]
        counted: Json = {
            "spec_verify_ct": cycles,
            "spec_accept_length": self.made / cycles if cycles else 0,
        }
        # The patched SGLang has none of its own counters for a request without a cycle.
        if cycles:
            counted |= {f"spec_{name}": value for name, value in counters.items()}
            if self.options.easd is not None:
                counted |= {"easd_checks": cycles, "easd_fires": self.easd_fires}
        return counted
