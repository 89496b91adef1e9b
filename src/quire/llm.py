"""`LLM`: a model for offline use. Point it at a model, call `generate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from quire.builder.open import open_plan
from quire.core import env, log
from quire.core.config import BuildConfig, EngineConfig
from quire.core.errors import ConfigError, RequestError, did_you_mean
from quire.core.progress import progress_bar, stages
from quire.core.request import RequestOutput
from quire.core.sampling_params import BeamSearchParams, RequestOutputKind, SamplingParams
from quire.engine.admission import Prompt
from quire.engine.beam_search import BeamSearchOutput, beam_search
from quire.engine.loading import load_engine
from quire.engine.runners import follow_driver
from quire.plan.plan import Plan
from quire.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.progress import Progress

Messages = Sequence[Mapping[str, Any]]

# Arguments of vLLM's `LLM` with the only value that is honoured so far.
_NOT_YET = {
    "speculative_config": None,
    "enable_lora": False,
}


class LLM:
    """A model, ready to generate.

    Args:
        model: A Hugging Face model directory, an engine directory, a hub id, "quire-tiny", the built-in model, or a
            Plan, for example from `Builder.build_engine`.
        tokenizer: Directory of another tokenizer.
        skip_tokenizer_init: Take and give token ids only.
        chat_template: Jinja text that replaces the model's own.
        options: Fields of `BuildConfig` (dtype, load_format, revision, hf_overrides, ...) and of `EngineConfig`
            (max_model_len, max_num_seqs, block_size, enable_prefix_caching, ...).

    Raises:
        ConfigError: An argument is unknown or cannot be honoured.
        PlanError: The model is incomplete or damaged.
        CapacityError: It does not fit into memory.
        WorkerError: Several ranks were asked for, and the process of one is lost; later, from any method.

    Example:
        >>> with LLM("quire-tiny") as llm:
        ...     print(llm.generate("The capital of France is")[0].outputs[0].text)
    """

    def __init__(
        self,
        model: str | Path | Plan,
        tokenizer: str | Path | None = None,
        *,
        skip_tokenizer_init: bool = False,
        chat_template: str | None = None,
        **options: Any,
    ) -> None:
        log.configure()
        env.check_environment()
        build_config, self._config = _configs(options)
        follow_driver(self._config)
        with stages() as on_progress:
            plan = open_plan(model, build_config, on_progress)
            total = len(plan.network.weights)
            loaded = load_engine(
                plan,
                self._config,
                tokenizer,
                skip_tokenizer_init=skip_tokenizer_init,
                on_progress=lambda done: on_progress("Loading weights", done, total),
            )
        self.plan = plan
        self._engine = loaded.engine
        self._tokenizer = loaded.tokenizer
        self._default_params = loaded.default_params
        self._chat_template = chat_template
        self._num_requests = 0
        self._streams: dict[str, list[RequestOutput]] = {}

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: None = None,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts.

        Args:
            prompts: One or a list of: text, token ids, `{"prompt": str}`, `{"prompt_token_ids": [...]}`.
            sampling_params: One for all or one per prompt; None takes the model's defaults.
            use_tqdm: Show progress.
            lora_request: Not supported yet; any value but None raises.
            priority: One per prompt, lower first, under `scheduling_policy="priority"`.

        Returns:
            One output per prompt, in order.

        Raises:
            RequestError: A prompt or its parameters are not valid; nothing has run then.
        """
        if lora_request is not None:
            raise ConfigError(f"lora_request: expected None (not supported yet), got {lora_request!r}.")
        batch = [prompts] if _is_single(prompts) else list(prompts)
        params = self._params_for(len(batch), sampling_params)
        if priority is not None and len(priority) != len(batch):
            raise RequestError(f"priority: expected {len(batch)} values, one per prompt, got {len(priority)}.")
        return self._run(batch, params, list(priority or [0] * len(batch)), use_tqdm)  # type: ignore[arg-type]

    def chat(
        self,
        messages: Messages | Sequence[Messages],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer conversations.

        Args:
            messages: One conversation (a list of `{"role", "content"}`) or a list of them.
            sampling_params: One for all or one per conversation.
            use_tqdm: Show progress.
            chat_template: Jinja text that replaces the model's own.
            add_generation_prompt: Open the assistant's turn.
            continue_final_message: Continue the last message instead of answering it.
            tools: Function definitions for the template.
            chat_template_kwargs: More variables for the template.

        Returns:
            One output per conversation, in order.

        Raises:
            RequestError: A conversation does not fit the template, or there is none.
        """
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else list(messages)
        tokenizer = self.get_tokenizer()
        prompts = [
            {
                "prompt_token_ids": tokenizer.apply_chat_template(
                    conversation,  # type: ignore[arg-type]
                    chat_template=chat_template or self._chat_template,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    tools=tools,
                    **(chat_template_kwargs or {}),
                )
            }
            for conversation in conversations
        ]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, sampling_params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Complete one prompt, handing out each new piece as it is generated.

        Args:
            prompt: As for `generate`.
            sampling_params: None takes the model's defaults.

        Yields:
            Outputs whose texts and ids hold only what is new. Leaving the loop early aborts the request.

        Raises:
            RequestError: The prompt or its parameters are not valid.
        """
        params = replace(self._params_for(1, sampling_params)[0], output_kind=RequestOutputKind.DELTA)
        self._num_requests += 1
        request_id = str(self._num_requests)
        self._engine.add_request(request_id, prompt, params)
        outputs = self._streams[request_id] = []
        try:
            is_finished = False
            while not is_finished:
                if not outputs:
                    self._step()
                while outputs and not is_finished:
                    output = outputs.pop(0)
                    is_finished = output.finished
                    yield output
        finally:
            del self._streams[request_id]
            self._engine.abort_request(request_id)

    def beam_search(self, prompts: Prompt | Sequence[Prompt], params: BeamSearchParams) -> list[BeamSearchOutput]:
        """Return the most likely continuations of each prompt, best first.

        Args:
            prompts: As for `generate`.
            params: Width, length and scoring.

        Raises:
            RequestError: A prompt is not valid, or too long for `max_tokens` more.
        """
        outputs = []
        for prompt in [prompts] if _is_single(prompts) else list(prompts):
            ids = self._engine.prompt_token_ids(prompt)  # type: ignore[arg-type]
            found = beam_search(ids, params, self._engine.eos_token_ids, self._generate_quietly)
            outputs.append(BeamSearchOutput([self._with_text(beam, len(ids)) for beam in found]))
        return outputs

    def get_tokenizer(self) -> Tokenizer:
        """Return the tokenizer.

        Raises:
            ConfigError: There is none.
        """
        if self._tokenizer is None:
            raise ConfigError("tokenizer: expected one, but skip_tokenizer_init=True was given; drop it.")
        return self._tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return the sampling parameters that the model's generation_config.json asks for."""
        return self._default_params

    def get_metrics(self) -> dict[str, float]:
        """Return counters since the start: requests, tokens, cache hits, preemptions."""
        return self._engine.metrics()

    def reset_prefix_cache(self) -> None:
        """Forget all cached prefixes."""
        self._engine.reset_prefix_cache()

    def sleep(self, level: int = 1) -> None:
        """Give memory back until `wake_up`.

        Args:
            level: 1 frees the KV cache, 2 the weights, too.
        """
        self._engine.sleep(level)

    def wake_up(self) -> None:
        """Take back what `sleep` freed."""
        self._engine.wake_up()

    def close(self) -> None:
        """Return all memory. The object cannot be used afterwards."""
        self._engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _params_for(self, count: int, given: SamplingParams | Sequence[SamplingParams] | None) -> list[SamplingParams]:
        """Return one set of parameters per prompt; only final outputs are asked for."""
        if isinstance(given, Sequence):
            params = list(given)
        else:
            params = [self._default_params if given is None else given] * count
        if len(params) != count:
            raise RequestError(f"sampling_params: expected {count}, one per prompt, got {len(params)}.")
        if self._tokenizer is None and given is None:
            params = [replace(p, detokenize=False) for p in params]
        for p in params:
            if not isinstance(p, SamplingParams):
                raise RequestError(f"sampling_params: expected SamplingParams, got {type(p).__name__}.")
        return [replace(p, output_kind=RequestOutputKind.FINAL_ONLY) for p in params]

    def _run(
        self, prompts: Sequence[Prompt], params: Sequence[SamplingParams], priority: Sequence[int], use_tqdm: bool
    ) -> list[RequestOutput]:
        """Add all requests or none, then step until all are finished."""
        added: list[str] = []
        outputs: dict[str, RequestOutput] = {}
        try:
            for prompt, p, rank in zip(prompts, params, priority, strict=True):
                self._num_requests += 1
                request_id = str(self._num_requests)
                self._engine.add_request(request_id, prompt, p, rank)
                added.append(request_id)
            with progress_bar("Processed prompts", len(added), enable=use_tqdm, has_speed=True) as bar:
                while len(outputs) < len(added):
                    for output in self._step():
                        outputs[output.request_id] = output
                        _advance(bar, output)
        finally:
            for request_id in added:
                if request_id not in outputs:
                    self._engine.abort_request(request_id)
        return [outputs[request_id] for request_id in added]

    def _step(self) -> list[RequestOutput]:
        """Run one step; what belongs to an open stream waits there, the rest is returned."""
        others: list[RequestOutput] = []
        for output in self._engine.step():
            self._streams.get(output.request_id, others).append(output)
        return others

    def _generate_quietly(
        self, prompts: Sequence[Mapping[str, list[int]]], params: SamplingParams
    ) -> list[RequestOutput]:
        return self.generate(list(prompts), params, use_tqdm=False)

    def _with_text(self, beam: Any, num_prompt_tokens: int) -> Any:
        if self._tokenizer is None:
            return beam
        return replace(beam, text=self._tokenizer.decode(beam.tokens[num_prompt_tokens:]))


def _is_single(prompts: object) -> bool:
    """Return whether this is one prompt: text, a mapping, or ids."""
    if isinstance(prompts, (str, Mapping)):
        return True
    return isinstance(prompts, Sequence) and len(prompts) > 0 and isinstance(prompts[0], int)


def _configs(options: dict[str, Any]) -> tuple[BuildConfig, EngineConfig]:
    """Split keyword arguments into the two configurations; refuse what is not known or not honoured yet."""
    if "trust_remote_code" in options:
        raise ConfigError("trust_remote_code does not exist: a model is data, and Quire never runs code from it.")
    for name, only in _NOT_YET.items():
        if (value := options.pop(name, only)) != only:
            raise ConfigError(f"{name}: expected {only!r} (more is not supported yet), got {value!r}.")
    build = {f.name for f in fields(BuildConfig)}
    engine = {f.name for f in fields(EngineConfig)}
    known = build | engine | {"tokenizer", "skip_tokenizer_init", "chat_template"}
    for name in options:
        if name not in build | engine:
            raise ConfigError(f"LLM: unknown argument {name!r}.{did_you_mean(name, known)}")
    return (
        BuildConfig(**{k: v for k, v in options.items() if k in build}),
        EngineConfig(**{k: v for k, v in options.items() if k in engine}),
    )


def _advance(bar: Progress, output: RequestOutput) -> None:
    """Count a finished request and show token rates so far."""
    if not output.finished:
        return
    task = bar.tasks[0]
    num_in = task.fields.get("num_in", 0) + len(output.prompt_token_ids)
    num_out = task.fields.get("num_out", 0) + sum(len(c.token_ids) for c in output.outputs)
    elapsed = max(task.elapsed or 0.0, 1e-9)
    speed = f"{num_in / elapsed:,.0f} in, {num_out / elapsed:,.0f} out tokens/s"
    bar.update(task.id, advance=1, num_in=num_in, num_out=num_out, speed=speed)
