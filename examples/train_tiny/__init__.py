"""How quire-tiny is made: text from a grammar, a tokenizer, a small Llama, trained on one CPU thread."""
