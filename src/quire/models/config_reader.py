"""`ConfigReader`: every key of a `config.json` is read within bounds, known to be harmless, off, or an error."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from quire.core.errors import ConfigError, did_you_mean

T = TypeVar("T")

# Bounds far above every published model: a size beyond them is a typing error or an attack, not a model.
MAX_VOCAB = 1 << 24
MAX_WIDTH = 1 << 20
MAX_LAYERS = 1 << 10
MAX_HEADS = 1 << 12
MAX_HEAD_DIM = 1 << 12
MAX_POSITIONS = 1 << 24
MAX_TOKEN_ID = (1 << 31) - 1
_MAX_LIST = 1 << 12

# Keys that hub configs carry and that do not change what a forward pass computes.
_BOOKKEEPING = """
    _name_or_path _commit_hash transformers_version model_type auto_map tokenizer_class torchscript tf_legacy_loss
    use_bfloat16 finetuning_task task_specific_params id2label label2id num_labels problem_type prefix
    unsloth_version unsloth_fixed model_max_length max_sequence_length n_ctx use_cache return_dict
    output_attentions output_hidden_states output_scores return_dict_in_generate chunk_size_feed_forward
    gradient_checkpointing attn_implementation _attn_implementation _attn_implementation_autoset
    _flash_attn_2_enabled use_flash_attn transformers.js_config is_llama_config output_past
"""
_TRAINING = """
    initializer_range init_std layerdrop dropout attention_dropout activation_dropout hidden_dropout classifier_dropout
    embd_pdrop resid_pdrop attn_pdrop attention_probs_dropout_prob hidden_dropout_prob
    summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    predict_special_tokens _num_labels neftune_noise_alpha
"""
# The sampler has its own sources for these.
_GENERATION = """
    pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id do_sample max_length min_length max_new_tokens temperature top_k top_p typical_p
    repetition_penalty length_penalty diversity_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_beams
    num_beam_groups num_return_sequences early_stopping bad_words_ids suppress_tokens begin_suppress_tokens
    remove_invalid_values exponential_decay_length_penalty
"""
HARMLESS = frozenset(f"{_BOOKKEEPING}{_TRAINING}{_GENERATION}".split())


def _show(value: object) -> str:
    """Return a value for a message, short whatever it is."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return "nothing" if value is None else reprlib.repr(value)


class ConfigReader:
    """Reads one JSON object of a model's config, key by key; null counts as absent.

    Args:
        config: The object.
        harmless: Keys that may be present unread.
        prefix: Shown before each key in errors.

    Raises:
        ConfigError: It is no object with string keys. Every method raises it, too, for a value that does not fit.
    """

    def __init__(self, config: Mapping[str, Any], harmless: frozenset[str] = HARMLESS, prefix: str = "") -> None:
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise ConfigError(f"config.json {prefix}: expected a JSON object, got {_show(config)}.")
        self._config = config
        self._harmless = harmless
        self._prefix = prefix
        self._read: set[str] = set()

    def fail(self, name: str, expected: str, hint: str = "") -> NoReturn:
        """Refuse the value of a key.

        Raises:
            ConfigError: Always; names the key, what is expected and what is there.
        """
        got = _show(self._config.get(name))
        raise ConfigError(f"config.json, {self._prefix}{name}: expected {expected}, got {got}.{hint}")

    def names(self) -> tuple[str, ...]:
        """Return all keys."""
        return tuple(self._config)

    def has(self, name: str) -> bool:
        """Return whether the key is there, null included."""
        return name in self._config

    def holds(self, name: str, value: object) -> bool:
        """Return whether the key holds this very value; if so, it counts as read."""
        found = self._config.get(name)
        same = type(found) is type(value) and found == value
        if same:
            self._read.add(name)
        return same

    def _get(self, name: str) -> Any:
        self._read.add(name)
        return self._config.get(name)

    def integer(self, name: str, high: int, *, low: int = 1, default: int | None = None) -> int:
        """Return an integer in [low, high]; without a default it must be there."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fail(name, f"an integer in [{low}, {high}]")
        return value

    def optional_integer(self, name: str, high: int, *, low: int = 1) -> int | None:
        """Return an integer in [low, high], or None."""
        return None if self._get(name) is None else self.integer(name, high, low=low)

    def number(self, name: str, low: float, high: float, default: float | None = None) -> float:
        """Return a finite number in [low, high]; without a default it must be there."""
        value = self._get(name)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            self.fail(name, f"a number in [{low:g}, {high:g}]")
        return float(value)

    def optional_number(self, name: str, low: float, high: float) -> float | None:
        """Return a finite number in [low, high], or None."""
        return None if self._get(name) is None else self.number(name, low, high)

    def boolean(self, name: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(name)
        if value is not None and not isinstance(value, bool):
            self.fail(name, "true or false")
        return default if value is None else value

    def choice(self, name: str, table: Mapping[str, T], default: str | None = None, hint: str = "") -> T:
        """Return what `table` holds for the string under this key; a hint says what to do when it holds nothing."""
        value = self._get(name)
        key = default if value is None else value
        if not isinstance(key, str) or key not in table:
            meant = did_you_mean(key, table) if isinstance(key, str) else ""
            self.fail(name, f"one of {', '.join(table)}", meant + hint)
        return table[key]

    def strings(self, name: str) -> tuple[str, ...] | None:
        """Return a list of strings, or None."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, (list, tuple)) or len(value) > _MAX_LIST or any(not isinstance(v, str) for v in value):
            self.fail(name, f"a list of at most {_MAX_LIST} strings")
        return tuple(value)

    def nested_strings(self, name: str) -> tuple[str, ...] | None:
        """Return the strings of a list of lists of them, one after the other, or None."""
        value = self._get(name)
        if value is None:
            return None
        rows: Sequence[Any] = value if isinstance(value, (list, tuple)) else [None]
        flat: list[Any] = [item for row in rows for item in (row if isinstance(row, (list, tuple)) else [row])]
        if len(flat) > _MAX_LIST or any(not isinstance(item, str) for item in flat):
            self.fail(name, f"lists of at most {_MAX_LIST} strings")
        return tuple(flat)

    def sizes(self, name: str, count: int) -> tuple[int, ...] | None:
        """Return a list of `count` positive integers, or None."""
        value = self._get(name)
        if value is None:
            return None
        fits = isinstance(value, (list, tuple)) and len(value) == count
        if not fits or any(isinstance(v, bool) or not isinstance(v, int) or not 0 < v <= MAX_VOCAB for v in value):
            self.fail(name, f"a list of {count} positive integers")
        return tuple(value)

    def token_ids(self, name: str) -> tuple[int, ...]:
        """Return the token ids under a key that holds one, a list of them, or null."""
        value = self._get(name)
        ids: Sequence[Any] = () if value is None else value if isinstance(value, (list, tuple)) else (value,)
        for item in ids:
            if isinstance(item, bool) or not isinstance(item, int) or not 0 <= item <= MAX_TOKEN_ID:
                self.fail(name, "a token id or a list of token ids")
        return tuple(dict.fromkeys(ids))

    def section(self, name: str, harmless: frozenset[str]) -> ConfigReader | None:
        """Return a reader of the object under this key, or None if it is absent or empty."""
        value = self._get(name)
        if value is None or value == {}:
            return None
        if not isinstance(value, Mapping):
            self.fail(name, "an object or null")
        return ConfigReader(value, harmless, f"{self._prefix}{name}.")

    def expect(self, name: str, supported: Any, why: str = "") -> None:
        """Refuse any value but the supported one; absent means it."""
        value = self._get(name)
        if value is not None and (value != supported or isinstance(value, bool) != isinstance(supported, bool)):
            self.fail(name, f"{supported!r}{why}")

    def ignore(self, *names: str) -> None:
        """Let keys be there whatever they hold."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuse keys that nobody read, that are not known to be harmless, and that are switched on."""
        for name, value in self._config.items():
            if name not in self._read and name not in self._harmless and value:
                self.fail(
                    name,
                    "no such key, as it may change what the model computes",
                    f"{did_you_mean(name, self._read)} If it does not, {self._way_on(name)}",
                )

    def _way_on(self, name: str) -> str:
        """Say how to switch a key off; overrides replace whole keys of the outermost object."""
        section = self._prefix.removesuffix(".")
        if section:
            return f'give {section!r} without it through hf_overrides={{"{section}": {{...}}}}.'
        return f'go on with hf_overrides={{"{name}": None}}.'
