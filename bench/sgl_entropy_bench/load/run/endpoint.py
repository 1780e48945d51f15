"""A server under load: its address, its routes, and how prompts reach it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sgl_entropy_bench.http.chat import ChatTemplate
from sgl_entropy_bench.http.client import Client, ServerError
from sgl_entropy_bench.http.routes import Api
from sgl_entropy_bench.load.judge.measurement import ServerFacts
from sgl_entropy_bench.load.schedule.workload import WorkloadPrompt

# The arguments of a server that are kept with a result; the others are many and change names.
ARGUMENTS = (
    "model_path",
    "dtype",
    "device",
    "attention_backend",
    "tp_size",
    "dp_size",
    "max_running_requests",
    "max_total_tokens",
    "chunked_prefill_size",
    "disable_radix_cache",
    "disable_cuda_graph",
    "speculative_algorithm",
    "speculative_draft_model_path",
    "speculative_num_steps",
    "speculative_eagle_topk",
    "speculative_num_draft_tokens",
    "speculative_verify_mode",
)


@dataclass
class Endpoint:
    """One server under load.

    Attributes:
        name: of the arm.
        api: the route that requests take.
        model: the model that requests to OpenAI's routes name.
        template: the target's chat template, where the server does not apply it.
        info: what ``/get_server_info`` says; empty for servers that have no such route.
    """

    name: str
    url: str
    client: Client
    api: Api
    model: str
    template: ChatTemplate | None
    info: dict[str, Any]

    @classmethod
    def connect(
        cls, name: str, url: str, api: str = "auto", tokenizer: Path | None = None
    ) -> Endpoint:
        """Ask a server what it is.

        Args:
            api: ``generate``, ``chat``, ``completions``, or ``auto``: generate, which counts
                draft-verify cycles, if a chat template is at hand (in ``tokenizer``, or in the
                server's own tokenizer folder if it is on this machine), else chat.

        Raises:
            ServerError: nothing answers there.
            ValueError: no such api, or a tokenizer folder without a template.
        """
        client = Client.from_url(url)
        info = _asked(client, "/get_server_info")
        model = _model(client)
        if not info and not model:
            raise ServerError(f"{name}: no server answers at {url}")
        template = None if tokenizer is None else ChatTemplate(tokenizer)
        if api == "auto":
            own = Path(str(info.get("tokenizer_path") or ""))
            if template is None and (own / "tokenizer_config.json").is_file():
                template = ChatTemplate(own)
            if info.get("fake"):
                api = "generate"
            else:
                api = "generate" if info and template is not None else "chat"
        if api == "generate":
            chosen: Api = "generate"
        elif api == "chat":
            chosen, template = "chat", None
        elif api == "completions":
            chosen = "completions"
        else:
            raise ValueError(f"--api {api}: expected auto, generate, chat or completions")
        return cls(name, url.rstrip("/"), client, chosen, model or "default", template, info)

    def text(self, prompt: WorkloadPrompt) -> str:
        """What is sent for a prompt."""
        if self.template is None:
            return prompt.text
        return self.template.render([{"role": "user", "content": prompt.text}])

    @property
    def caption(self) -> str:
        """How prompts reach the target, for captions."""
        if self.api == "chat":
            return "chat route, template by the server"
        route = "/generate" if self.api == "generate" else "/v1/completions"
        return f"{route}, " + ("target's chat template" if self.template else "plain prompts")

    @property
    def ranks(self) -> int | None:
        """Data-parallel ranks; None where the server does not report them."""
        ranks = self.info.get("dp_size")
        return ranks if isinstance(ranks, int) and ranks > 0 else None

    def arguments(self) -> dict[str, Any]:
        """The server's arguments that are kept with a result; paths by their last part."""
        told = {key: self.info[key] for key in ARGUMENTS if self.info.get(key) is not None}
        for key in ("model_path", "speculative_draft_model_path"):
            if key in told:
                told[key] = Path(str(told[key])).name
        return told | ({"fake": True} if self.info.get("fake") else {})

    def facts(self, command: str = "") -> ServerFacts:
        """What is kept with a result; ``command`` started the server."""
        return ServerFacts(
            self.version(), self.api, self.caption, self.ranks, self.arguments(), command
        )

    def version(self) -> str:
        """The server's own version; empty where it does not say."""
        return str(self.info.get("version", ""))

    def forget_prefixes(self, patience_s: float = 20.0) -> bool:
        """Empty the prefix cache; False where the server has no such route, or keeps refusing."""
        try:
            self.client.forget_prefixes(patience_s)
        except ServerError:
            return False
        return True

    def counters(self) -> list[dict[str, Any]]:
        """Each rank's cycles and tokens so far, where the server counts them."""
        states = _asked(self.client, "/get_server_info").get("internal_states") or []
        told = [state.get("sgl_entropy_counters") for state in states if isinstance(state, dict)]
        return [counters for counters in told if isinstance(counters, dict)]


def tau_of_counters(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> float | None:
    """Tokens a cycle between two readings of a server's counters; None where it has none."""
    if len(before) != len(after):
        return None
    cycles = sum(
        b.get("cycles", 0) - a.get("cycles", 0) for a, b in zip(before, after, strict=True)
    )
    emitted = sum(
        b.get("emitted", 0) - a.get("emitted", 0) for a, b in zip(before, after, strict=True)
    )
    return emitted / cycles if cycles > 0 else None


def _asked(client: Client, path: str) -> dict[str, Any]:
    try:
        reply = client.get(path, timeout_s=15.0)
    except (ServerError, OSError):
        return {}
    return reply if isinstance(reply, dict) else {}


def _model(client: Client) -> str:
    models = _asked(client, "/v1/models").get("data") or []
    return str(models[0].get("id", "")) if models and isinstance(models[0], dict) else ""
