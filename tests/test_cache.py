from __future__ import annotations

from composir.cache import Cache


def test_the_cache_keeps_within_its_bytes_what_was_asked_for_last():
    cache = Cache(10)
    for name in "abc":
        cache.put(name, name.upper(), 4)
        assert cache.get("a") == "A"
    assert [cache.get(name) for name in "abc"] == ["A", None, "C"]
    cache.put("a", "A", 4)  # counts once
    assert [cache.get(name) for name in "ac"] == ["A", "C"]
    cache.put("d", "D", 11)
    assert [cache.get(name) for name in "acd"] == [None] * 3
