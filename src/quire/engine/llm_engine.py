"""`LLMEngine`: requests in, outputs out, one step at a time. The whole circle is `step`."""

from __future__ import annotations

import time
from collections.abc import Callable

from quire.core.config import EngineConfig
from quire.core.request import RequestOutput
from quire.core.sampling_params import SamplingParams
from quire.engine.admission import Admission, Prompt
from quire.engine.engine_loop import EngineLoop
from quire.engine.grammars import make_grammars
from quire.engine.output import OutputProcessor
from quire.plan.plan import Plan
from quire.tokenizer.tokenizer import Tokenizer


class LLMEngine:
    """Runs a Plan with paged KV cache and continuous batching.

    Args:
        plan: What to execute.
        config: How; None takes the defaults.
        tokenizer: None runs on token ids alone.
        eos_token_ids: Ids that end a sample.
        on_progress: Called with the number of weights loaded so far.

    Raises:
        ConfigError: A setting contradicts the model.
        CapacityError: The model does not fit.
        PlanError: A weight is missing or damaged.
    """

    def __init__(
        self,
        plan: Plan,
        config: EngineConfig | None = None,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: frozenset[int] = frozenset(),
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        settings = config or EngineConfig()
        self.plan = plan
        self.eos_token_ids = eos_token_ids
        self.grammars = make_grammars(tokenizer, plan.spec.vocab_size, eos_token_ids)
        self.loop = EngineLoop(plan, settings, on_progress, self.grammars)
        self.outputs = OutputProcessor(tokenizer)
        max_model_len = self.loop.scheduler_config.max_model_len
        self._admission = Admission(tokenizer, plan.spec.vocab_size, max_model_len, eos_token_ids, settings.seed)

    def add_request(self, request_id: str, prompt: Prompt, params: SamplingParams, priority: int = 0) -> None:
        """Queue a request.

        Args:
            request_id: Unique among unfinished requests.
            prompt: Text, token ids, or a mapping with `prompt` or `prompt_token_ids`.
            params: How to sample.
            priority: Lower is served first under the "priority" policy.

        Raises:
            RequestError: It is not valid; nothing else is touched.
            CapacityError: It could never fit into the KV cache.
        """
        request = self._admission.admit(request_id, prompt, params, priority, time.monotonic())
        if self.grammars is not None and params.structured_outputs is not None:
            self.grammars.prepare(params.structured_outputs)
        self.loop.add(request)
        self.outputs.add(request)

    def step(self) -> list[RequestOutput]:
        """Run one step and return the outputs that it produced.

        There are none while as many steps may be in flight as there are. A runner that computes at once has none.
        """
        updates = self.loop.step()  # requests -> integers -> tensors -> integers
        outputs, ended = self.outputs.process(updates)  # integers -> text
        for sample in ended:
            self.loop.finish(*sample)
        return outputs

    def abort_request(self, request_id: str) -> list[RequestOutput]:
        """End a request at once; returns its last output, with finish reason "abort", if it was unfinished."""
        return self.outputs.process(self.loop.abort(request_id))[0]

    def prompt_token_ids(self, prompt: Prompt) -> list[int]:
        """Return a prompt's ids.

        Raises:
            RequestError: It is not of a known form.
        """
        return self._admission.token_ids(prompt)[1]

    def has_unfinished_requests(self) -> bool:
        """Return whether there is anything left to do."""
        return self.loop.has_unfinished()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes.

        Raises:
            RequestError: Requests are still running.
        """
        self.loop.reset_prefix_cache()

    def metrics(self) -> dict[str, float]:
        """Return counters since the start and the present load, by the names that vLLM exports."""
        return self.loop.metrics()

    def sleep(self, level: int) -> None:
        """Free the KV cache (1) or the weights as well (2), until `wake_up`.

        Raises:
            ConfigError: Another level.
            RequestError: Requests are still running.
        """
        self.loop.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed; weights are read again from the Plan."""
        self.loop.wake_up()

    def close(self) -> None:
        """End all requests and return all memory."""
        self.outputs = OutputProcessor(None)
        self.loop.close()
        self._admission.close()
