"""Two EDSD drafters of one target, of which one drafts at a time.

Both are SGLang's own EAGLE workers: they share the target, its allocator and its table of KV
slots, and each has a KV cache of its own at the same slots. Both read a prompt. Then one drafts,
and the rows that the other does not read are kept with the requests (``missed``). When the
target's entropy over the last cycle says that the other should draft, one forward over the missed
rows brings its cache up to date for every request of the batch, and gives the state from which it
drafts next. So every draft is what its drafter would have made if it had drafted all along, and
what the target writes never depends on who drafted.

The drafter is chosen after a verification, when the batch holds every request that has a draft
state: SGLang merges prefilled requests before it decodes.
"""

from __future__ import annotations

import copy
import time
from typing import Any

import torch
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.managers.scheduler import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.server_args import set_global_server_args_for_scheduler
from sglang.srt.speculative.eagle_info import EagleDraftInput
from sglang.srt.speculative.eagle_worker import EAGLEWorker

from sgl_entropy.runtime.v0_5_6.counters import TOTALS
from sgl_entropy.runtime.v0_5_6.switch_args import ServedDrafters
from sgl_entropy.serving import attached, missed
from sgl_entropy.verify.policies import DrafterSwitch


class SwitchingWorker(EAGLEWorker):
    """The first drafter's worker, which also runs the second and chooses between them."""

    def __init__(self, served: ServedDrafters, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        args = kwargs["server_args"]
        first_is_small = args.speculative_draft_model_path == served.small
        other = _build(served.large if first_is_small else served.small, kwargs)
        pair: tuple[EAGLEWorker, EAGLEWorker] = (self, other) if first_is_small else (other, self)
        self.policy = served.policy
        self.drafters = pair
        self.now = DrafterSwitch.SMALL
        self.counts = TOTALS.begin_switching()

    @property
    def active(self) -> EAGLEWorker:
        return self.drafters[self.now]

    @property
    def idle(self) -> EAGLEWorker:
        return self.drafters[1 - self.now]

    def forward_batch_generation(self, batch: ScheduleBatch) -> GenerationBatchResult:
        """One step of a batch, as upstream's: a prompt, or draft, verification, draft extend."""
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            return self._prompts(batch)
        draft = self.active.draft(batch)
        cycle = attached.cycle_for(batch.spec_info)
        cycle.drafter = self.now
        before = batch.seq_lens_cpu.tolist()
        output, verified, _, graph = self.verify(batch, draft)
        counts = [accepted + 1 for accepted in verified.accept_length_per_req_cpu]
        missed.add(batch.reqs, counts, verified.verified_id, output.hidden_states)
        staying = [i for i, req in enumerate(batch.reqs) if not req.finished()]
        if staying:
            ends = [before[i] + counts[i] for i in staying]
            emitted = verified.accepted_indices.tolist()
            self._extend(batch, staying, ends, cycle.mean_target_entropy(emitted))
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=verified.verified_id,
            num_accepted_tokens=sum(verified.accept_length_per_req_cpu),
            can_run_cuda_graph=graph,
        )

    def _prompts(self, batch: ScheduleBatch) -> GenerationBatchResult:
        output, ids, seq_lens_cpu = self.forward_target_extend(batch)
        beside = copy.copy(batch)
        # The draft extend shifts the tokens in place.
        beside.input_ids = batch.input_ids.clone()
        self.idle.forward_draft_extend(beside, output.hidden_states, ids, seq_lens_cpu)
        self.active.forward_draft_extend(batch, output.hidden_states, ids, seq_lens_cpu)
        missed.forget(batch.reqs)
        return GenerationBatchResult(
            logits_output=output,
            next_token_ids=ids,
            num_accepted_tokens=0,
            can_run_cuda_graph=False,
        )

    def _extend(
        self, batch: ScheduleBatch, staying: list[int], ends: list[int], mean: float
    ) -> None:
        """After a verification: the state of the next draft, from the drafter that will make it.

        Args:
            staying: numbers of the requests that go on; ends: the current length of each.
            mean: nats, of the target over the cycle's emitted positions.
        """
        reqs = [batch.reqs[i] for i in staying]
        wanted = self.policy.choose(self.now, mean)
        if wanted == self.now:
            self.active.forward_draft_extend_after_decode(batch)
            if sum(missed.count(req) for req in reqs) > missed.MOST_ROWS:
                self._catch_up(self.idle, batch, staying, ends)
                missed.forget(reqs)
            return
        self.now = wanted
        self.counts.switches += 1
        _take_over(self.active, batch.spec_info, self._catch_up(self.active, batch, staying, ends))
        missed.keep_newest(reqs)

    def _catch_up(
        self, worker: EAGLEWorker, batch: ScheduleBatch, staying: list[int], ends: list[int]
    ) -> LogitsProcessorOutput:
        """Let a drafter read all missed rows of these requests; one output row a request."""
        began = time.perf_counter()
        rows = missed.gather([batch.reqs[i] for i in staying])
        runner = worker.draft_model_runner
        work = _prompt_of(batch, staying, ends, rows)
        forward = ForwardBatch.init_new(work.get_model_worker_batch(), runner)
        forward.return_logprob = False
        output, _ = runner.forward(forward)
        if batch.seq_lens.device.type != "cpu":
            torch.get_device_module(batch.seq_lens.device).synchronize()
        self.counts.catch_ups += 1
        self.counts.tokens += sum(rows.counts)
        self.counts.seconds += time.perf_counter() - began
        return output


def _build(path: str, kwargs: dict[str, Any]) -> EAGLEWorker:
    """A worker for a second drafter, at ``path``."""
    args = copy.copy(kwargs["server_args"])
    args.speculative_draft_model_path = path
    args.speculative_draft_model_revision = None
    # The draft model finds its config through the global arguments.
    set_global_server_args_for_scheduler(args)
    try:
        return EAGLEWorker(**{**kwargs, "server_args": args})
    finally:
        set_global_server_args_for_scheduler(kwargs["server_args"])


def _prompt_of(
    batch: ScheduleBatch, staying: list[int], ends: list[int], rows: missed.MissedRows
) -> ScheduleBatch:
    """A batch in which the missed rows are the last part of a prompt."""
    device = batch.seq_lens.device
    counts = torch.tensor(rows.counts, device=device)
    last = counts.cumsum(0) - 1
    lengths = torch.tensor(ends, dtype=batch.seq_lens.dtype, device=device)
    pool_rows = batch.req_pool_indices[torch.tensor(staying, device=device)]
    number = torch.arange(len(rows.ids), device=device)
    # Row r of a request ending at position e, its last row at flat number l: position e - 1 - l + r
    column = number + (lengths - 1 - last).repeat_interleave(counts)
    table = batch.req_to_token_pool.req_to_token
    work = copy.copy(batch)
    work.reqs = [batch.reqs[i] for i in staying]
    work.forward_mode = ForwardMode.EXTEND
    work.input_ids = rows.ids
    work.req_pool_indices = pool_rows
    work.seq_lens = lengths
    work.seq_lens_cpu = torch.tensor(ends, dtype=batch.seq_lens_cpu.dtype)
    work.orig_seq_lens = lengths.to(torch.int32)
    work.seq_lens_sum = sum(ends)
    work.prefix_lens = [end - count for end, count in zip(ends, rows.counts, strict=True)]
    work.extend_lens = rows.counts
    work.extend_num_tokens = sum(rows.counts)
    work.extend_logprob_start_lens = [0] * len(ends)
    work.extend_input_logprob_token_ids = None
    work.out_cache_loc = table[pool_rows.repeat_interleave(counts), column].to(torch.int64)
    work.multimodal_inputs = [None] * len(ends)
    work.sampling_info = None
    work.return_logprob = work.return_hidden_states = False
    work.spec_info = EagleDraftInput(
        hidden_states=rows.features,
        verified_id=rows.ids[last],
        capture_hidden_mode=CaptureHiddenMode.LAST,
        num_tokens_per_batch=1,
        num_tokens_for_logprob_per_batch=1,
    )
    return work


def _take_over(worker: EAGLEWorker, state: EagleDraftInput, output: LogitsProcessorOutput) -> None:
    """Make a verification's result the state of the next draft, as upstream's extend does."""
    counts = torch.tensor(state.accept_length_cpu, device=state.verified_id.device) + 1
    state.verified_id = state.verified_id[counts.cumsum(0) - 1]
    state.capture_hidden_mode = CaptureHiddenMode.LAST
    worker.capture_for_decode(output, state)
