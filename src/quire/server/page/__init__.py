"""The page at `/`: a chat, and beside it what the KV cache holds. Plain files; nothing built, nothing of others."""
