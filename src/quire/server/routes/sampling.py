"""A body's sampling fields become `SamplingParams`: what it says over what the model's generation_config.json says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from quire.core.sampling_params import RequestOutputKind, SamplingParams
from quire.server.errors import invalid
from quire.server.protocol.common import SamplingFields
from quire.server.routes.endpoint import Call

_SAME_NAMES = (
    "frequency_penalty", "presence_penalty", "logit_bias", "n", "seed", "stop", "temperature", "top_p", "top_k",
    "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids", "include_stop_str_in_output",
    "skip_special_tokens", "spaces_between_special_tokens", "allowed_token_ids", "bad_words", "prompt_logprobs",
)  # fmt: skip

# Fields of other servers that would change the text: known, and refused unless they say what is done anyway.
COMMON_IGNORED: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "use_beam_search": (None, False),
    "length_penalty": (None, 1, 1.0),
    "logits_processors": (None, []),
    "truncate_prompt_tokens": (None,),
    "detokenize": (None, True),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "lora_request": (None,),
    "kv_transfer_params": (None,),
}


def sampling_params(call: Call, body: SamplingFields, **fixed: Any) -> SamplingParams:
    """Return the parameters of a request.

    Args:
        call: The request.
        body: Its fields.
        **fixed: Parameters that have no field of the same name in the body; None leaves the default.

    Raises:
        ApiError: 400, a field contradicts another one or the server's settings.
        RequestError: Likewise.
    """
    given = {name: value for name in _SAME_NAMES if (value := getattr(body, name)) is not None}
    given |= {name: value for name, value in fixed.items() if value is not None}
    is_streamed = bool(body.stream)
    if body.stream_options is not None and not is_streamed:
        raise invalid("stream_options: expected stream=true beside it, got none.")
    if is_streamed and body.prompt_logprobs is not None:
        raise invalid("prompt_logprobs: expected stream=false beside it, got true.")
    for name in ("logprobs", "prompt_logprobs"):
        if given.get(name, 0) > call.context.config.max_logprobs:
            raise invalid(
                f"{name}: expected at most {call.context.config.max_logprobs} (--max-logprobs), got {given[name]}."
            )
    kind = RequestOutputKind.DELTA if is_streamed else RequestOutputKind.FINAL_ONLY
    return replace(call.served.default_params, output_kind=kind, **given)


def default_max_tokens(call: Call) -> int | None:
    """Return the longest answer of a chat that does not say: what the model asks for, or as much as there is room."""
    own = call.served.default_params.max_tokens
    return None if own == SamplingParams().max_tokens else own
