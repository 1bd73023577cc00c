"""From the robot's sizes to the model's: zeros behind the real entries, and what counts in the loss."""

import dataclasses

import numpy as np

from openpi_b1k.transforms.base import Sample


@dataclasses.dataclass(frozen=True)
class PadToModel:
    """Pads `state` [s] and `actions` [ah, a] with zeros to `action_dim` and says which action entries count.

    `action_mask` [ah, action_dim] is true for the robot's own entries at steps before the episode's end; with
    `mask_padding` off, everywhere, as in openpi's loss.
    """

    action_dim: int
    mask_padding: bool

    def __call__(self, sample: Sample) -> Sample:
        """Returns the model's fields only, state and actions float32."""
        padded = {
            "images": sample["images"],
            "image_masks": sample["image_masks"],
            "state": self._pad(sample["state"]),
            "raw_state": sample["raw_state"],
            "prompt_tokens": sample["prompt_tokens"],
            "prompt_mask": sample["prompt_mask"],
        }
        if "point_cloud" in sample:
            padded["point_cloud"] = sample["point_cloud"]
        if "actions" in sample:
            padded |= {"actions": self._pad(sample["actions"]), "action_mask": self._mask(sample)}
        return padded

    def _pad(self, values: np.ndarray) -> np.ndarray:
        padded = np.zeros((*values.shape[:-1], self.action_dim), np.float32)
        padded[..., : values.shape[-1]] = values
        return padded

    def _mask(self, sample: Sample) -> np.ndarray:
        horizon, size = sample["actions"].shape
        if not self.mask_padding:
            return np.ones((horizon, self.action_dim), bool)
        mask = np.zeros((horizon, self.action_dim), bool)
        mask[:, :size] = ~np.asarray(sample["is_pad"], bool)[:, None]
        return mask
