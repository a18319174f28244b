import pytest
import torch

from lemix_hpc.engines.torch.kv_cache import KeyValueCache


@pytest.fixture
def cache() -> KeyValueCache:
    return KeyValueCache(range(3, 5), heads=2, head_dim=4, dtype=torch.float32, device=torch.device("cpu"))


def some(length: int, value: float | None = None) -> torch.Tensor:
    return torch.randn(1, 2, length, 4) if value is None else torch.full((1, 2, length, 4), value)


def test_keys_and_values_outlive_the_growth_of_their_buffer(cache: KeyValueCache) -> None:
    written: list[tuple[torch.Tensor, torch.Tensor]] = []
    for length in (5, 1, 90, 1, 300):
        cached = sum(key.shape[2] for key, _ in written)
        cache.reserve(7, cached, length)
        written.append((some(length), some(length)))
        for layer in (3, 4):
            keys, values = cache.append(7, layer, written[-1][0] + layer, written[-1][1] - layer)
            assert torch.equal(keys, torch.cat([key for key, _ in written], dim=2) + layer)
            assert torch.equal(values, torch.cat([value for _, value in written], dim=2) - layer)


def test_requests_do_not_touch_each_other(cache: KeyValueCache) -> None:
    cache.reserve(1, 0, 3)
    cache.reserve(2, 0, 3)
    cache.append(1, 3, some(3, 1.0), some(3, 1.5))
    cache.append(2, 3, some(3, 2.0), some(3, 2.5))
    cache.reserve(1, 3, 1)
    keys, _ = cache.append(1, 3, some(1, 3.0), some(1, 3.5))
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 1.0, 3.0]


def test_what_comes_after_the_cached_tokens_is_dropped(cache: KeyValueCache) -> None:
    cache.reserve(1, 0, 6)
    cache.append(1, 3, some(6, 1.0), some(6, 1.0))
    cache.reserve(1, 2, 1)
    keys, _ = cache.append(1, 3, some(1, 9.0), some(1, 9.0))
    assert keys[0, 0, :, 0].tolist() == [1.0, 1.0, 9.0]


def test_tokens_that_are_not_kept(cache: KeyValueCache) -> None:
    cache.reserve(1, 0, 4)
    cache.forget([1, 8])
    with pytest.raises(ValueError, match=r"request 1 wants 4 cached tokens, but 0 are kept"):
        cache.reserve(1, 4, 1)
