"""What a user is told of a cache that cannot help."""

import pytest

from expertflow_jax.offload.policies import make_policy
from expertflow_jax.offload.slots import SlotPool


@pytest.mark.parametrize(("slots", "top_k", "words"), [(11, 3, "11 slots are fewer than the 12"), (12, 3, "")])
def test_lru_over_all_layers_with_less_than_one_tokens_experts(slots, top_k, words):
    policy = make_policy("on_demand")
    policy.attach(SlotPool(slots, 4, 8, 64))
    concern = policy.concern(top_k)
    assert words in concern
    assert bool(words) == bool(concern)
    assert "\n" not in concern


def test_a_cache_per_layer_is_no_concern():
    policy = make_policy("cache_moe")
    policy.attach(SlotPool(2, 4, 8, 64))
    assert policy.concern(8) == ""
