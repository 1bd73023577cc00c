"""From the actions that a chunk should continue to a sample that carries them to the sampler."""

from typing import Any

import numpy as np

from openpi_b1k.serving.executor import Continuation


def with_continuation(sample: dict[str, Any], continuation: Continuation, action_horizon: int) -> dict[str, Any]:
    """Returns the raw sample with the known actions as `actions` [ah, a], the input unchanged.

    The input pipeline makes of them what the sampler compares with: relative to the new observation's state, normalised
    and padded to the model; `is_pad` [ah] is true from the first unknown step on, where the last known action stands.

    Raises:
        ValueError: more actions are known than a chunk has.
    """
    known = continuation.actions
    num_unknown = action_horizon - len(known)
    if num_unknown < 0:
        raise ValueError(f"{len(known)} actions are to be continued in a chunk of {action_horizon}")
    actions = np.concatenate([known, np.repeat(known[-1:], num_unknown, axis=0)])
    return sample | {"actions": actions, "is_pad": np.arange(action_horizon) >= len(known)}
