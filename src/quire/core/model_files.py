"""Names of the small files beside a model's weights."""

GENERATION_CONFIG = "generation_config.json"

TOKENIZER_JSON = "tokenizer.json"
VOCAB_JSON = "vocab.json"
MERGES_TXT = "merges.txt"
SENTENCEPIECE_MODEL = "tokenizer.model"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
NAMED_TEMPLATES = "additional_chat_templates/*.jinja"

TOKENIZER_FILES = (
    TOKENIZER_JSON,
    VOCAB_JSON,
    MERGES_TXT,
    SENTENCEPIECE_MODEL,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    NAMED_TEMPLATES,
)
"""Everything that a tokenizer may be read from, as patterns relative to the model's directory."""
