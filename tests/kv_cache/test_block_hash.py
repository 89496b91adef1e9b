"""Names of blocks."""

from __future__ import annotations

from quire.kv_cache.block_hash import BlockHasher


def test_a_name_depends_on_tokens_parent_salt_and_key() -> None:
    hasher, other = BlockHasher(), BlockHasher()
    root = hasher.root("")
    first = hasher.child(root, [1, 2])
    names = {
        root,
        first,
        hasher.root("salt"),
        hasher.child(root, [2, 1]),
        hasher.child(first, [1, 2]),
        hasher.child(hasher.root("salt"), [1, 2]),
        other.root(""),
        other.child(root, [1, 2]),
    }
    assert len(names) == 8
    assert hasher.child(root, (1, 2)) == first == hasher.child(hasher.root(""), [1, 2])


def test_a_salt_cannot_imitate_a_block() -> None:
    hasher = BlockHasher()
    root = hasher.root("")
    content = root + (7).to_bytes(8, "little")
    imitation = hasher._digest(content, b"root")
    assert hasher._digest(content, b"block") == hasher.child(root, [7]) != imitation


def test_any_text_is_a_salt() -> None:
    hasher = BlockHasher()
    assert hasher.root("\ud800") != hasher.root("é" * 10_000)
