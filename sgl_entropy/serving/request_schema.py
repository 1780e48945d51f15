"""The schema of a generation request: what each field may hold, whatever host serves it.

SGLang's own checks let wrong types, numbers beyond 32 bits and schemas that are no schemas through
to its scheduler process, where the exception takes every running request down with it. What the
schema refuses is refused at the door, by the name of its field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from reprlib import Repr
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

INT32 = 2**31 - 1
INT64 = 2**63 - 1
# Beyond it, numbers of 32 bits overflow when they are added or scaled.
LARGE = 1e30
# Answers of one request; each is a request of its own.
MOST_ANSWERS = 1024
# SGLang's word for "any JSON".
ANY_JSON = "$$ANY$$"

T = TypeVar("T")
_SHOWN = Repr()
_SHOWN.maxstring = _SHOWN.maxother = 60


def _json_schema(text: str) -> str:
    if text != ANY_JSON and not isinstance(_parsed(text), dict | bool):
        raise ValueError("expected a JSON schema (an object, true or false)")
    return text


def _structural_tag(text: str) -> str:
    tag = _parsed(text)
    of_today = isinstance(tag, dict) and isinstance(tag.get("format"), dict)
    of_before = isinstance(tag, dict) and all(
        isinstance(tag.get(key), list) and tag[key] for key in ("structures", "triggers")
    )
    if not of_today and not of_before:
        raise ValueError('expected an object with "format", or with "structures" and "triggers"')
    return text


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"expected JSON ({problem})") from None


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as problem:
        raise ValueError(f"expected a regular expression ({problem})") from None
    return text


def _top_k(value: int) -> int:
    if value == 0 or value < -1:
        raise ValueError("expected -1 (all) or at least 1")
    return value


def _token(key: str) -> str:
    if not re.fullmatch("[0-9]{1,10}", key):
        raise ValueError("expected a token id")
    return key


Expression = Annotated[str, AfterValidator(_expression)]
Token = Annotated[int, Field(ge=0, le=INT32)]
Text = Annotated[str, Field(min_length=1)]
# One fault of a long list is enough.
Many: TypeAlias = Annotated[list[T], Field(min_length=1, fail_fast=True)]
Each: TypeAlias = T | list[T]
Biases = dict[Annotated[str, AfterValidator(_token)], Annotated[float, Field(ge=-LARGE, le=LARGE)]]


class _Fields(BaseModel):
    """Exact types, no unknown keys, no NaN and no infinity."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class Sampling(_Fields):
    """``sampling_params`` of one answer, as SGLang's ``SamplingParams`` takes them."""

    max_new_tokens: Annotated[int, Field(ge=0)] | None = None
    min_new_tokens: Annotated[int, Field(ge=0)] = 0
    stop: Text | list[Text] | None = None
    stop_token_ids: list[Token] | set[Token] | None = None
    stop_regex: Expression | list[Expression] | None = None
    temperature: Annotated[float, Field(ge=0, le=LARGE)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(le=INT32), AfterValidator(_top_k)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    # Logits are divided by it.
    repetition_penalty: Annotated[float, Field(ge=1e-6, le=2)] = 1.0
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] = 1
    json_schema: Annotated[str, AfterValidator(_json_schema)] | None = None
    regex: str | None = None
    ebnf: str | None = None
    structural_tag: Annotated[str, AfterValidator(_structural_tag)] | None = None
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    no_stop_trim: bool = False
    custom_params: Any = None
    stream_interval: Annotated[int, Field(ge=1, le=INT32)] | None = None
    logit_bias: Biases | None = None
    sampling_seed: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] = 42


class Session(_Fields):
    """``session_params`` of one request."""

    id: str | None = None
    rid: str | None = None
    offset: Annotated[int, Field(ge=-INT32, le=INT32)] | None = None
    replace: bool | None = None
    drop_previous_output: bool | None = None


class Request(_Fields):
    """The fields of ``/generate`` that reach the scheduler; most take a value a prompt as well."""

    rid: Text | Many[Text] | None = None
    text: str | Many[str] | None = None
    input_ids: Many[Token] | Many[Many[Token]] | None = None
    input_embeds: Many[Many[float]] | Many[Many[Many[float]]] | None = None
    sampling_params: dict[str, Any] | Many[dict[str, Any]] | None = None
    return_logprob: Each[bool] | None = None
    logprob_start_len: Each[Annotated[int, Field(ge=-1, le=INT32)]] | None = None
    top_logprobs_num: Each[Annotated[int, Field(ge=0, le=INT32)]] | None = None
    token_ids_logprob: list[Token] | list[list[Token] | None] | None = None
    return_text_in_logprobs: bool = False
    stream: bool = False
    return_hidden_states: Each[bool] = False
    session_params: Session | list[Session] | None = None
    lora_path: Each[str | None] = None
    lora_id: Each[str | None] = None
    custom_logit_processor: Each[str | None] = None
    bootstrap_host: Each[str | None] = None
    bootstrap_port: Each[Annotated[int, Field(ge=0, le=65535)] | None] = None
    bootstrap_room: Each[Annotated[int, Field(ge=0, le=INT64)] | None] = None
    bootstrap_pair_key: Each[str | None] = None
    decode_tp_size: Each[Annotated[int, Field(ge=1, le=INT32)] | None] = None
    data_parallel_rank: Annotated[int, Field(ge=0)] | None = None
    priority: Annotated[int, Field(ge=-INT64 - 1, le=INT64)] | None = None
    extra_key: Each[str | None] = None
    image_data: Any = None
    video_data: Any = None
    audio_data: Any = None


class Logging(_Fields):
    """The body of ``/configure_logging``: a wrong level would break every later request."""

    log_requests: bool | None = None
    log_requests_level: Annotated[int, Field(ge=0, le=3)] | None = None
    dump_requests_folder: str | None = None
    dump_requests_threshold: Annotated[int, Field(ge=1, le=INT32)] | None = None
    crash_dump_folder: str | None = None


# A list of these holds one value a prompt.
_BY_PROMPT = (
    *("rid", "sampling_params", "return_logprob", "logprob_start_len", "top_logprobs_num"),
    *("return_hidden_states", "lora_path", "lora_id", "custom_logit_processor"),
)


@dataclass(frozen=True)
class Served:
    """What a request's values are compared with.

    Attributes:
        vocab_size: of the target.
        hidden_size: width of its embeddings.
        ranks: data-parallel ranks.
        tokenizer: whether the server has one (no ``--skip-tokenizer-init``).
        multimodal: whether the target reads more than text.
        speculates: whether a drafter runs. Its taps take the place of the hidden states.
    """

    vocab_size: int
    hidden_size: int
    ranks: int = 1
    tokenizer: bool = True
    multimodal: bool = False
    speculates: bool = False


def check_request(fields: Mapping[str, Any], served: Served) -> None:
    """Refuse a request that the scheduler could not serve, or whose lists do not fit together.

    Args:
        fields: those of ``Request`` that the request has.

    Raises:
        ValueError: names the field, what was expected and what was found.
    """
    _check(Request, fields, "")
    prompts = _prompts(fields)
    for name in _BY_PROMPT:
        value = fields.get(name)
        if isinstance(value, list) and len(value) != prompts:
            expected = "one value" if prompts is None else f"{prompts} values, one a prompt"
            raise ValueError(f"{name}: expected {expected}, found a list of {len(value)}")
    _check_rids(fields.get("rid"))
    for name, ids in _id_lists(fields):
        check_ids(name, ids, served.vocab_size)
    for row in _rows_of_embeddings(fields.get("input_embeds")):
        if len(row) != served.hidden_size:
            raise ValueError(
                f"input_embeds: expected rows of {served.hidden_size} numbers, found {len(row)}"
            )
    for number in _flat(fields.get("top_logprobs_num")):
        if number > served.vocab_size:
            raise ValueError(
                f"top_logprobs_num: expected at most {served.vocab_size} (the vocabulary), "
                f"found {number}"
            )
    for name in ("image_data", "video_data", "audio_data"):
        if not served.multimodal and _holds_data(fields.get(name)):
            raise ValueError(f"{name}: expected none, as this server's model reads text alone")
    if served.speculates and any(_flat(fields.get("return_hidden_states"))):
        raise ValueError("return_hidden_states: expected false, as this server has a drafter")
    rank = fields.get("data_parallel_rank")
    if rank is not None and rank >= served.ranks:
        raise ValueError(f"data_parallel_rank: expected 0..{served.ranks - 1}, found {rank}")
    for params in _flat(fields.get("sampling_params")):
        check_sampling(params, served)


def check_logging(fields: Mapping[str, Any]) -> None:
    """Refuse what logging cannot be set to.

    Raises:
        ValueError: names the field, what was expected and what was found.
    """
    _check(Logging, fields, "")


def check_sampling(params: Mapping[str, Any], served: Served) -> None:
    """Refuse sampling parameters that no answer can be drawn with.

    Raises:
        ValueError: names the field, what was expected and what was found.
    """
    where = "sampling_params"
    _check(Sampling, params, where)
    check_ids(f"{where}.stop_token_ids", params.get("stop_token_ids") or (), served.vocab_size)
    bias = params.get("logit_bias") or {}
    check_ids(f"{where}.logit_bias", [int(token) for token in bias], served.vocab_size)
    texts = ("stop", "stop_regex", "json_schema", "regex", "ebnf", "structural_tag")
    asked = [name for name in texts if params.get(name)]
    if asked and not served.tokenizer:
        raise ValueError(
            f"{where}.{asked[0]}: this server has no tokenizer (--skip-tokenizer-init)"
        )


def check_ids(name: str, ids: Sequence[int] | set[int], vocab_size: int) -> None:
    """Token ids must be in 0..vocab_size - 1.

    Raises:
        ValueError: names the field and the first five wrong ids.
    """
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    wrong = [token for token in ids if not 0 <= token < vocab_size]
    shown = ", ".join(str(token) for token in wrong[:5])
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    raise ValueError(f"{name} must be whole numbers in 0..{vocab_size - 1}, found {shown}{more}")


def _prompts(fields: Mapping[str, Any]) -> int | None:
    """Prompts of a batch; None = one alone."""
    depths = {"text": 0, "input_ids": 1, "input_embeds": 2}
    names = [name for name in depths if fields.get(name) is not None]
    if len(names) != 1:
        found = " and ".join(names) or "none of them"
        raise ValueError(f"expected one of text, input_ids and input_embeds, found {found}")
    inner = value = fields[names[0]]
    for _ in range(depths[names[0]]):
        inner = inner[0]
    return len(value) if isinstance(inner, list) else None


def _check_rids(rids: Any) -> None:
    if isinstance(rids, list) and len(set(rids)) != len(rids):
        raise ValueError("rid: expected a name of its own for each prompt, found one twice")


def _id_lists(fields: Mapping[str, Any]) -> list[tuple[str, list[int]]]:
    lists = []
    for name in ("input_ids", "token_ids_logprob"):
        value = fields.get(name) or []
        nested = any(isinstance(one, list) or one is None for one in value)
        lists += [(name, one) for one in (value if nested else [value]) if one]
    return lists


def _rows_of_embeddings(value: Any) -> list[list[float]]:
    if value is None:
        return []
    return [row for one in value for row in one] if isinstance(value[0][0], list) else value


def _holds_data(value: Any) -> bool:
    if isinstance(value, list):
        return any(_holds_data(one) for one in value)
    return value is not None


def _flat(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check(schema: type[BaseModel], value: Any, where: str) -> None:
    try:
        schema.model_validate(value)
    except ValidationError as problem:
        raise ValueError(_told(problem, where)) from None


def _told(problem: ValidationError, where: str) -> str:
    """The first field at fault, with all that it could have been and what it is."""
    faults = problem.errors(include_url=False, include_context=False)
    name = faults[0]["loc"][:1]
    field = ".".join(str(part) for part in (where, *name) if part != "")
    of_field = [fault for fault in faults if fault["loc"][:1] == name]
    if of_field[0]["type"] == "extra_forbidden":
        return f"{where or 'the request'}: no such field: {_SHOWN.repr(name[-1])}"
    expected = " or ".join(dict.fromkeys(_expectation(fault["msg"]) for fault in of_field))
    deepest = max(of_field, key=lambda fault: len(fault["loc"]))
    return f"{field}: expected {expected}, found {_SHOWN.repr(deepest['input'])}"


def _expectation(message: str) -> str:
    return re.sub("^(Value error, (expected )?|[A-Z][a-z]+ should (be |have )?)", "", message)
