r"""The prompt as tokens.

pi0.5 reads `Task: {text}, State: {bins};\nAction: `, each state entry in one of 256 bins; pi0, which is given the state
as numbers, `{text}` and then a line break, whose tokens are made apart.

Source of the texts, the cleaning and the bins: openpi `models/tokenizer.py` at 15a9616. Two differences: a value below
-1 falls into bin 0 (openpi writes "-1" there), and a prompt that is too long is refused (openpi cuts its end off).
"""

import dataclasses
import functools
import pathlib
from collections.abc import Mapping

import numpy as np
import sentencepiece

from openpi_b1k.transforms.base import Sample

NUM_BINS = 256
_EDGES = np.linspace(-1, 1, NUM_BINS + 1)[1:-1]


def state_bins(state: np.ndarray) -> np.ndarray:
    """Returns the bin of each normalised value, int64 in [0, 255]; those beyond [-1, 1] in the outermost."""
    return np.searchsorted(_EDGES, state, side="right")


def clean(prompt: str) -> str:
    """Returns the prompt as it enters the text: on one line, underscores as spaces.

    Raises:
        ValueError: nothing is left of it.
    """
    cleaned = prompt.strip().replace("_", " ").replace("\n", " ")
    if not cleaned:
        raise ValueError(f"a prompt must say what to do; got {prompt!r}")
    return cleaned


def prompt_text(prompt: str, bins: list[int]) -> str:
    """Returns the text the model continues with actions."""
    return f"Task: {clean(prompt)}, State: {' '.join(map(str, bins))};\nAction: "


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A SentencePiece model, read when first needed; worker processes receive it with what it has read."""

    path: pathlib.Path

    @functools.cached_property
    def model_bytes(self) -> bytes:
        """The model file's content, which each checkpoint keeps."""
        return self.path.read_bytes()

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self._processor.vocab_size()

    def encode(self, prompt: str, bins: list[int] | None) -> list[int]:
        """Returns the token ids of the whole text, begin-of-sentence first; without bins that of pi0."""
        if bins is None:
            return self._processor.encode(clean(prompt), add_bos=True) + self._processor.encode("\n")
        return self._processor.encode(prompt_text(prompt, bins), add_bos=True)

    def decode(self, ids: list[int]) -> str:
        """Returns the text of token ids; begin-of-sentence and padding are none of it."""
        return self._processor.decode(ids)

    def tokenize(self, prompt: str, state: np.ndarray | None, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns token ids int32 [max_tokens], zero-padded, and a mask, true where a token is part of the prompt.

        Args:
            prompt: the instruction.
            state: normalised and without padding, [s]; None: the text has none, as pi0's.
            max_tokens: length of the result.

        Raises:
            ValueError: the prompt is empty or does not fit.
        """
        ids = self.encode(prompt, None if state is None else state_bins(state).tolist())
        if len(ids) > max_tokens:
            needed = self.worst_case_length(prompt, None if state is None else state.size)
            with_state = "" if state is None else " with its state"
            raise ValueError(
                f"the prompt {prompt!r} takes {len(ids)} tokens{with_state}, the limit is {max_tokens}; "
                f"raise it with --model.max-prompt-tokens {needed}"
            )
        tokens = np.zeros(max_tokens, np.int32)
        tokens[: len(ids)] = ids
        return tokens, np.arange(max_tokens) < len(ids)

    def worst_case_length(self, prompt: str, num_state: int | None) -> int:
        """Returns the most tokens a prompt can take: those with the longest number in each state entry, if it has any.

        For `num_state` None, the length of pi0's text.
        """
        return len(self.encode(prompt, None if num_state is None else [self._longest_bin] * num_state))

    def check_prompts(self, prompts: Mapping[str, str], num_state: int | None, max_tokens: int) -> None:
        """Refuses prompts that take, or with some state would take, more than `max_tokens`.

        Args:
            prompts: task name -> prompt.
            num_state: entries of the state; None: the text has no state, as pi0's.
            max_tokens: the limit.

        Raises:
            ValueError: a prompt is empty, or can be too long; tells every such task.
        """
        lengths = {task: self.worst_case_length(prompt, num_state) for task, prompt in prompts.items()}
        too_long = {task: length for task, length in lengths.items() if length > max_tokens}
        if too_long:
            tasks = ", ".join(f"{task} ({length} tokens)" for task, length in too_long.items())
            what = (
                "the prompts of these tasks"
                if num_state is None
                else "with their state, the prompts of these tasks can"
            )
            raise ValueError(
                f"{what} take more than {max_tokens} tokens: {tasks}; "
                f"raise the limit with --model.max-prompt-tokens {max(too_long.values())}"
            )

    @functools.cached_property
    def _processor(self) -> sentencepiece.SentencePieceProcessor:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)

    @functools.cached_property
    def _longest_bin(self) -> int:
        return max(range(NUM_BINS), key=lambda number: (len(self._processor.encode(f" {number}")), number))


@dataclasses.dataclass(frozen=True)
class TokenizePrompt:
    """Adds `prompt_tokens` and `prompt_mask`, made of `prompt` alone, as pi0 reads it."""

    tokenizer: Tokenizer
    max_tokens: int

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with its prompt as tokens."""
        tokens, mask = self.tokenizer.tokenize(sample["prompt"], None, self.max_tokens)
        return sample | {"prompt_tokens": tokens, "prompt_mask": mask}


@dataclasses.dataclass(frozen=True)
class TokenizePromptAndState:
    """Adds `prompt_tokens` and `prompt_mask`, made of `prompt` and the normalised `state`, as pi0.5 reads them."""

    tokenizer: Tokenizer
    max_tokens: int

    def __call__(self, sample: Sample) -> Sample:
        """Returns the sample with its prompt as tokens."""
        tokens, mask = self.tokenizer.tokenize(sample["prompt"], sample["state"], self.max_tokens)
        return sample | {"prompt_tokens": tokens, "prompt_mask": mask}
