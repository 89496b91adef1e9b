"""The check at the door: may this request ever run?"""

from __future__ import annotations

from quire.core.config import SchedulerConfig
from quire.core.errors import CapacityError, RequestError
from quire.core.request import Request
from quire.scheduler.row import max_num_tokens


def check_fits(request: Request, config: SchedulerConfig) -> None:
    """Refuse a request that could not run to its end even with the whole pool to itself.

    Every row that passes can be completed once all others have given their blocks back; with the order of service
    this is why the scheduler cannot livelock.

    Raises:
        RequestError: The prompt leaves no room for a token within `max_model_len`.
        CapacityError: A sample may need more blocks than the pool has.
    """
    num_prompt_tokens = len(request.prompt_token_ids)
    if not 0 < num_prompt_tokens < config.max_model_len:
        raise RequestError(
            f"request {request.request_id!r}: expected a prompt of 1 to {config.max_model_len - 1} tokens, so that "
            f"prompt and one generated token fit max_model_len={config.max_model_len}, got {num_prompt_tokens}. "
            "Shorten the prompt or raise max_model_len."
        )
    longest = max_num_tokens(request, config)
    num_blocks = -(-(longest - 1) // config.block_size)  # The last sampled token is never computed.
    if num_blocks > config.num_blocks - 1:
        fits = (config.num_blocks - 1) * config.block_size + 1
        most = fits - num_prompt_tokens
        advice = f"max_tokens of at most {most}" if most > 0 else f"a prompt of at most {fits - 1} tokens"
        raise CapacityError(
            f"request {request.request_id!r}: a prompt of {num_prompt_tokens} tokens that may grow to {longest} needs "
            f"{num_blocks} KV cache blocks of {config.block_size} tokens, but the pool has {config.num_blocks - 1}. "
            f"What fits: {advice}, or max_model_len={fits}, or a larger KV cache (kv_cache_memory_bytes, "
            f"gpu_memory_utilization) of at least {num_blocks} blocks."
        )
