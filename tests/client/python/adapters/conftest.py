"""Fixtures of the adapters' tests: caches that look like a model's."""

import pytest
import torch

# Tiny models gain nothing from threads, and lose a lot to them where cores are few.
torch.set_num_threads(1)


@pytest.fixture
def kv_values():
    """Makes keys or values: kv_values(shape, dtype, seed), smooth along the tokens, as a model's are."""

    def make(shape, dtype=torch.float16, seed=0):
        generator = torch.Generator().manual_seed(seed)
        steps = torch.randn(shape, generator=generator)
        return (steps.cumsum(-2) * 0.1 + torch.randn(shape[-1], generator=generator)).to(dtype)

    return make
