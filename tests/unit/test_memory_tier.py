"""The memory tier keeps to its bytes, and forgets what it should."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc

import pytest
from bi_query.entries import CacheKey, Entry
from bi_query.invalidation import Invalidations, compile_glob, literal_prefix
from bi_query.memory_tier import MemoryTier
from bi_query.metrics import Metrics

KIB = 1024


def entry_of(key: CacheKey, body: bytes) -> Entry:
    return Entry(key.query, key.label, 1.0, 2.0, 3.0, '"' + "e" * 24 + '"', 1, False, 0.5, False, body)


def key_of(number: int, query: str = "shops") -> CacheKey:
    return CacheKey("s" * 16, "all", query, f"limit={number}", "json", "d" * 12)


def fill(tier: MemoryTier, numbers: range, body_bytes: int) -> None:
    for number in numbers:
        key = key_of(number)
        tier.put(key.text, entry_of(key, random.randbytes(body_bytes)))


@pytest.mark.parametrize("body_bytes", [10, 3 * KIB, 60 * KIB])
def test_filled_ten_times_over_it_holds_no_more_bytes_than_it_may(body_bytes: int) -> None:
    budget = 2048 * KIB
    metrics = Metrics()
    tier = MemoryTier(budget, metrics)
    count = 10 * budget // (body_bytes + KIB)
    gc.collect()
    tracemalloc.start()
    try:
        fill(tier, range(count), body_bytes)
        gc.collect()
        really = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = metrics.registry.get_sample_value("bi_cache_bytes")
    assert counted is not None
    assert budget * 0.8 < counted <= budget
    assert really <= budget
    assert metrics.registry.get_sample_value("bi_cache_evictions_total") == count - metrics.cache_entries._value.get()
    assert metrics.registry.get_sample_value("bi_cache_max_bytes") == budget


def test_long_labels_count_too() -> None:
    tier = MemoryTier(512 * KIB, Metrics())
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(5000):
            key = CacheKey("s" * 16, "all", "shops", f"shop={'é' * 380}{number}", "json", "d" * 12)
            tier.put(key.text, entry_of(key, b"x"))
        gc.collect()
        really = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert really <= 512 * KIB


def test_what_was_used_last_stays() -> None:
    tier = MemoryTier(20 * KIB, Metrics())
    fill(tier, range(4), 3 * KIB)
    for number in range(4, 200):
        assert tier.get(key_of(0).text) is not None
        fill(tier, range(number, number + 1), 3 * KIB)
    assert tier.get(key_of(1).text) is None


def test_an_entry_larger_than_the_tier_evicts_nothing() -> None:
    tier = MemoryTier(20 * KIB, Metrics())
    fill(tier, range(2), 3 * KIB)
    fill(tier, range(2, 3), 30 * KIB)
    assert [tier.get(key_of(number).text) is not None for number in range(3)] == [True, True, False]


def test_replacing_and_dropping_give_the_bytes_back() -> None:
    metrics = Metrics()
    tier = MemoryTier(200 * KIB, metrics)
    for _ in range(50):
        fill(tier, range(3), 3 * KIB)
    for number in range(3):
        tier.drop(key_of(number).text)
        tier.drop(key_of(number).text)
    assert metrics.registry.get_sample_value("bi_cache_bytes") == 0
    assert metrics.registry.get_sample_value("bi_cache_entries") == 0
    assert metrics.registry.get_sample_value("bi_cache_evictions_total") == 0


def test_a_tier_of_no_bytes_holds_nothing() -> None:
    tier = MemoryTier(0, Metrics())
    fill(tier, range(3), 1)
    assert tier.get(key_of(0).text) is None


def test_invalidation_takes_what_matches_wholly_and_says_how_many() -> None:
    tier = MemoryTier(900 * KIB, Metrics())
    for query in ("shops", "shops_2", "stores"):
        for number in range(3):
            key = key_of(number, query)
            tier.put(key.text, entry_of(key, b"x"))
    assert tier.invalidate(compile_glob("shops/*")) == 3
    assert tier.invalidate(compile_glob("shops")) == 0
    assert tier.invalidate(compile_glob("*/limit=1/*")) == 2
    assert tier.invalidate(None) == 4


GLOBS = [
    ("*", "anything/at=all/json", True),
    ("", "", True),
    ("", "a", False),
    ("shops/*", "shops/limit=1/json", True),
    ("shops/*", "shops_2/limit=1/json", False),
    ("shops/*", "x/shops/limit=1/json", False),
    ("*/json", "shops/limit=1/json", True),
    ("*/json", "shops/limit=1/json5", False),
    ("sh?ps/*", "shops/limit=1/json", True),
    ("?", "é", True),
    ("?", "🛒", True),
    ("?", "", False),
    ("*a*b*", "xxaxxbxx", True),
    ("*a*b*", "xxbxxaxx", False),
    ("a*a", "a", False),
    ("a*a", "aa", True),
    ("*ab", "aab", True),
    ("a**b", "ab", True),
    ("[a]", "[a]", True),
    ("[a]", "a", False),
    ("[^a]", "b", False),
    ("[^a]*", "[^a]x", True),
    ("a\\*", "a\\bc", True),
    ("a\\*", "a*", False),
    ("\\", "\\", True),
    ("^a", "^a", True),
    ("a.c", "abc", False),
    ("a+(b)|{c}$", "a+(b)|{c}$", True),
    ("a*", "a\nb", True),
]


@pytest.mark.parametrize(("pattern", "label", "matches"), GLOBS)
def test_in_a_glob_only_star_and_question_mark_are_special(pattern: str, label: str, matches: bool) -> None:
    assert bool(compile_glob(pattern).fullmatch(label)) is matches
    if matches:
        assert label.startswith(literal_prefix(pattern))


def test_a_glob_agrees_with_trying_every_way_to_match() -> None:
    def slowly(pattern: str, label: str) -> bool:
        if not pattern:
            return not label
        if pattern[0] == "*":
            return any(slowly(pattern[1:], label[at:]) for at in range(len(label) + 1))
        return bool(label) and pattern[0] in ("?", label[0]) and slowly(pattern[1:], label[1:])

    rng = random.Random(7)
    for _ in range(3000):
        pattern = "".join(rng.choices("ab?*", k=rng.randrange(7)))
        label = "".join(rng.choices("ab", k=rng.randrange(9)))
        assert bool(compile_glob(pattern).fullmatch(label)) is slowly(pattern, label), (pattern, label)


def test_a_hostile_glob_is_matched_in_no_time() -> None:
    glob = compile_glob("*a" * 249 + "*b")
    started = time.process_time()
    for _ in range(100):
        assert not glob.fullmatch("a" * 600)
    assert time.process_time() - started < 5  # the naive translation takes longer than anyone will wait for one


def test_an_invalidation_counts_for_what_began_before_it() -> None:
    known = Invalidations()
    before = time.monotonic()
    known.add(compile_glob("shops/*"))
    after = time.monotonic() + 1e-6
    assert known.since(before, "shops/limit=1/json")
    assert not known.since(before, "stores/limit=1/json")
    assert not known.since(after, "shops/limit=1/json")
    known.add(None)
    assert known.since(before, "stores/limit=1/json")


def test_when_too_many_invalidations_came_to_remember_all_counts_as_invalidated() -> None:
    known = Invalidations()
    before = time.monotonic()
    for number in range(1001):
        known.add(compile_glob(f"query_{number}/*"))
    assert known.since(before, "query_0/limit=1/json")
    assert not known.since(time.monotonic() + 1e-6, "query_0/limit=1/json")
