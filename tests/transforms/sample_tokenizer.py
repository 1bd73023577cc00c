"""How `openpi_b1k/transforms/sample_tokenizer.model` was made; run this file from the repository root to make it again.

    uv run tests/transforms/sample_tokenizer.py

BPE with PaliGemma's special ids and whitespace rules (identity normalisation, no dummy prefix), bytes for characters it
has not seen, and each number of the state, with the space before it, as one symbol. It is trained on the prompts of
both challenges (tests/data/prompts) and, repeated so that their words become single tokens, on the sample world's.
"""

import io
import json
import pathlib

import sentencepiece

MODEL = pathlib.Path(__file__).parents[2] / "openpi_b1k/transforms/sample_tokenizer.model"
PROMPTS = pathlib.Path(__file__).parents[1] / "data/prompts"
SAMPLE_PROMPTS = tuple(
    f"Press the {color} button with the {side} {hand}."
    for color in ("red", "blue", "green", "yellow")
    for side in ("left", "right")
    for hand in ("gripper", "arm", "hand")
)


def challenge_prompts() -> list[str]:
    """Returns the prompts of the 2025 and 2026 tasks, each text once."""
    texts = {text for file in PROMPTS.glob("*.json") for text in json.loads(file.read_text()).values()}
    return sorted(texts)


def build() -> bytes:
    """Returns the SentencePiece model."""
    prompts = [*challenge_prompts(), *SAMPLE_PROMPTS * 20]
    corpus = [*(f"Task: {prompt}, State: 5;" for prompt in prompts), *["Action: "] * 200]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=model,
        model_type="bpe",
        vocab_size=1024,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        user_defined_symbols=[f"\u2581{number}" for number in range(256)],
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


if __name__ == "__main__":
    MODEL.write_bytes(build())
