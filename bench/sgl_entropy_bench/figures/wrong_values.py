"""Requests with one or two wrong values, in every field of every route that reads a body."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import Any

from sgl_entropy_bench.http.client import Client

Json = dict[str, Any]

_DEEP: list[Any] = []
for _ in range(60):
    _DEEP = [_DEEP]

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, -5, 2**31, -(2**31) - 1, 2**33, 2**63, -(2**63) - 1, 10**30),
    *(0.5, -0.5, 2.5, 1e-300, 1e300, float("nan"), float("inf"), -float("inf")),
    *("", " ", "x", "1", "-1", "nan", "(", "[", "{", "{}", "[]", "null", "5", '"x"', "\x00"),
    *(
        "\u2028",
        "\U0001f600" * 40,
        "\ud800",
        "a" * 5000,
        "(a+)+b",
        "(?P<",
        "root ::= root",
        '{"type": 7}',
    ),
    *(
        [],
        [None],
        [[]],
        [{}],
        [0],
        [-1],
        [1, 2, 3],
        [10**9],
        [2**63],
        ["x"],
        [""],
        [[1]],
        [[[1.5]]],
    ),
    *([True], [0.5], ["x"] * 200, {}, {"x": 1}, {"": None}, {"1": 1e300}, {"-1": 1}, {"0": "x"}),
    *({"type": "object"}, {"type": "json_schema"}, {"id": 3}, {"a": {"b": {"c": []}}}, _DEEP),
)
FEW = {"temperature": 0, "max_new_tokens": 3}
SAMPLING = (
    *("max_new_tokens", "min_new_tokens", "stop", "stop_token_ids", "stop_regex", "temperature"),
    *("top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty"),
    *("n", "json_schema", "regex", "ebnf", "structural_tag", "ignore_eos", "skip_special_tokens"),
    *("spaces_between_special_tokens", "no_stop_trim", "custom_params", "stream_interval"),
    *("logit_bias", "sampling_seed", "foo"),
)
CUSTOM = ("easd", "spec_trace", "spec_drafters", "foo")
GENERATE = (
    *("text", "input_ids", "input_embeds", "image_data", "video_data", "audio_data"),
    *("sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num", "rid"),
    *("token_ids_logprob", "return_text_in_logprobs", "stream", "log_metrics", "modalities"),
    *("return_hidden_states", "session_params", "lora_path", "lora_id", "custom_logit_processor"),
    *("bootstrap_host", "bootstrap_port", "bootstrap_room", "bootstrap_pair_key", "reasoning"),
    *("decode_tp_size", "data_parallel_rank", "background", "conversation_id", "priority"),
    *("extra_key", "no_logs", "custom_labels", "return_bytes", "return_entropy", "foo"),
)
OPENAI = (
    *("model", "max_tokens", "temperature", "top_p", "n", "stream", "stop", "logprobs", "seed"),
    *(
        "presence_penalty",
        "frequency_penalty",
        "logit_bias",
        "user",
        "top_k",
        "min_p",
        "min_tokens",
    ),
    *("response_format", "regex", "ebnf", "json_schema", "repetition_penalty", "stop_token_ids"),
    *("stop_regex", "no_stop_trim", "ignore_eos", "skip_special_tokens", "lora_path", "rid"),
    *("session_params", "custom_params", "custom_logit_processor", "return_hidden_states"),
    *("stream_options", "priority", "extra_key", "data_parallel_rank", "bootstrap_host", "foo"),
)
CHAT = (
    *("messages", "tools", "tool_choice", "top_logprobs", "max_completion_tokens", "modalities"),
    *("parallel_tool_calls", "reasoning_effort", "chat_template_kwargs", "separate_reasoning"),
    *("continue_final_message", "stream_reasoning"),
)
COMPLETION = ("prompt", "best_of", "echo", "suffix")
RESPONSES = ("input", "instructions", "max_output_tokens", "metadata", "store", "tools", "stream")


@dataclass(frozen=True)
class Route:
    """A route, a sound body, and the fields to put wrong values into."""

    path: str
    body: Mapping[str, Any]
    fields: tuple[str, ...]


ROUTES = (
    Route("/generate", {"text": "The sky is", "sampling_params": FEW}, GENERATE),
    Route("/v1/completions", {"model": "m", "prompt": "The", "max_tokens": 3}, OPENAI + COMPLETION),
    Route(
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
        OPENAI + CHAT,
    ),
    Route("/v1/responses", {"model": "m", "input": "Hi", "max_output_tokens": 3}, RESPONSES),
)
CONTROL = (
    Route("/tokenize", {"model": "m", "prompt": "x"}, ("model", "prompt", "add_special_tokens")),
    Route("/detokenize", {"model": "m", "tokens": [1]}, ("tokens", "skip_special_tokens")),
    Route("/abort_request", {"rid": "none"}, ("rid", "abort_all")),
    Route("/open_session", {"capacity_of_str_len": 10}, ("capacity_of_str_len", "session_id")),
    Route("/close_session", {"session_id": "none"}, ("session_id",)),
    Route(
        "/update_weights_from_disk",
        {"model_path": "none"},
        ("model_path", "load_format", "abort_all_requests", "weight_version", "is_async"),
    ),
    Route("/update_weights_from_tensor", {}, ("serialized_named_tensors", "load_format")),
    Route("/update_weights_from_distributed", {}, ("names", "dtypes", "shapes", "group_name")),
    Route("/get_weights_by_name", {"name": "none"}, ("name", "truncate_size")),
    Route("/set_internal_state", {"server_args": {}}, ("server_args",)),
    Route("/load_lora_adapter", {"lora_name": "x", "lora_path": "x"}, ("lora_name", "lora_path")),
    Route("/unload_lora_adapter", {"lora_name": "x"}, ("lora_name", "lora_id")),
    Route("/encode", {"text": "x"}, ("text", "input_ids", "sampling_params", "rid")),
    Route("/classify", {"text": "x"}, ("text", "input_ids", "rid")),
    Route("/v1/embeddings", {"model": "m", "input": "x"}, ("input", "model", "dimensions")),
    Route("/v1/score", {"model": "m"}, ("query", "items", "label_token_ids", "apply_softmax")),
    Route("/v1/rerank", {"query": "x", "documents": ["y"]}, ("query", "documents", "instruct")),
    Route("/parse_function_call", {"text": "x"}, ("text", "tools", "tool_call_parser")),
    Route("/separate_reasoning", {"text": "x"}, ("text", "reasoning_parser")),
    Route("/configure_logging", {}, ("log_requests", "log_requests_level")),
)


@dataclass(frozen=True)
class WrongRequest:
    """A request as it is sent; ``name`` says which value stands where."""

    path: str
    body: bytes
    name: str


def wrong_requests(count: int, seed: int = 0) -> Iterator[WrongRequest]:
    """``count`` requests, the same for the same seed: half with one wrong value, half with two.

    Two of three go to ``/generate``, of which half of the values into the sampling parameters.
    """
    draw = random.Random(seed)
    for _ in range(count):
        route = ROUTES[0] if draw.random() < 0.6 else draw.choice(ROUTES[1:] + CONTROL)
        body: Json = json.loads(json.dumps(route.body))
        names = []
        for _ in range(draw.choice((1, 2))):
            names.append(_spoil(draw, route, body))
        text = json.dumps(body)
        yield WrongRequest(route.path, text.encode(), f"{route.path} {' '.join(names)}")


def _spoil(draw: random.Random, route: Route, body: Json) -> str:
    holder: Any = body
    prefix, fields = "", route.fields
    if route is ROUTES[0] and isinstance(body["sampling_params"], dict) and draw.random() < 0.5:
        holder, prefix, fields = body["sampling_params"], "sampling_params.", SAMPLING
        if draw.random() < 0.1:
            holder = holder.setdefault("custom_params", {})
            prefix, fields = prefix + "custom_params.", CUSTOM
    name, value = draw.choice(fields), draw.choice(VALUES)
    if not isinstance(holder, dict):
        return f"{prefix} of another kind"
    if value is None and name in ("max_new_tokens", "max_tokens", "max_output_tokens"):
        value = "none"  # null is right: as long as the context
    holder[name] = value
    return f"{prefix}{name}={json.dumps(value)[:60]}"


def outcome_of(client: Client, request: WrongRequest, timeout_s: float = 60.0) -> str:
    """The status of the answer; ``none`` and why, if none came."""
    connection = HTTPConnection(client.host, client.port, timeout=timeout_s)
    try:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", request.path, request.body, headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, HTTPException) as problem:
        return f"none ({problem!r})"
    finally:
        connection.close()
    return str(answer.status)
