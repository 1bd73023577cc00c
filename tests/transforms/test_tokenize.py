import json
import pathlib
import pickle

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies
from hypothesis.extra import numpy as arrays

from openpi_b1k.transforms.tokenize import (
    TokenizePrompt,
    TokenizePromptAndState,
    Tokenizer,
    clean,
    prompt_text,
    state_bins,
)
from tests.transforms import sample_tokenizer

PROMPT = "Press the red button with the left gripper."
STATES = arrays.arrays(np.float64, 23, elements=strategies.floats(-6, 6))


@pytest.fixture(scope="module", params=["shipped", "rebuilt"])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    """Returns the shipped model, and what its recipe makes here: both must behave as promised."""
    if request.param == "shipped":
        return Tokenizer(sample_tokenizer.MODEL)
    path = tmp_path_factory.mktemp("tokenizer") / "rebuilt.model"
    path.write_bytes(sample_tokenizer.build())
    return Tokenizer(path)


def test_text_and_bins_agree_with_openpi(reference):
    bins = state_bins(reference["norm/out/state_quantile"])
    np.testing.assert_array_equal(bins, np.maximum(reference["prompt/state_bins"], 0))  # openpi writes -1 there
    text = bytes(reference["prompt/text"]).decode()
    assert prompt_text("turn_on_the radio\n", bins.tolist()) == text.replace(" -1 ", " 0 ")


@hypothesis.given(STATES)
def test_bins_are_those_of_digitize_clipped(state):
    expected = np.digitize(state, np.linspace(-1, 1, 257)[:-1]) - 1
    np.testing.assert_array_equal(state_bins(state), np.clip(expected, 0, 255))


def test_bins_at_the_edges():
    assert state_bins(np.array([-9, -1, np.nextafter(0, -1), 0, np.nextafter(1, 0), 1, 9])).tolist() == [
        0, 0, 127, 128, 255, 255, 255,
    ]  # fmt: skip


def test_cleaning_is_openpis():
    assert clean(" turning_on_radio\nnow ") == "turning on radio now"


@pytest.mark.parametrize("prompt", ["", " \n"])
def test_an_empty_prompt_is_refused(prompt):
    with pytest.raises(ValueError, match="must say what to do; got ''" if not prompt else "must say what to do"):
        clean(prompt)


# All of Unicode but NUL, and the character that SentencePiece uses for a space.
TEXTS = strategies.text(strategies.characters(exclude_characters="\0\u2581", exclude_categories=("Cs",)), max_size=40)


@hypothesis.given(prompt=TEXTS.filter(str.strip), state=STATES)
@hypothesis.settings(max_examples=50)
def test_any_text_survives_and_the_cue_is_never_cut(tokenizer, prompt, state):
    tokens, mask = tokenizer.tokenize(prompt, state, 512)
    length = mask.sum()
    assert mask[:length].all()
    assert tokens[0] == 2  # begin of sentence, as PaliGemma's
    assert not tokens[length:].any()
    assert tokens.max() < tokenizer.vocab_size
    text = tokenizer.decode(tokens[1:length].tolist())
    assert text == prompt_text(prompt, state_bins(state).tolist())
    assert text.endswith(";\nAction: ")


def test_decoding_gives_the_text_back(tokenizer):
    state = np.linspace(-1, 1, 3)
    tokens, mask = tokenizer.tokenize("put the red ball away", state, 64)
    text = prompt_text("put the red ball away", state_bins(state).tolist())
    assert tokenizer.decode(tokens[mask].tolist()).split() == text.split()


def test_special_ids_are_paligemmas(tokenizer):
    processor = tokenizer._processor  # noqa: SLF001
    assert [processor.pad_id(), processor.eos_id(), processor.bos_id(), processor.unk_id()] == [0, 1, 2, 3]


def test_every_state_number_is_one_token(tokenizer):
    for number in range(256):
        lengths = {len(tokenizer.encode(PROMPT, [number] * count)) - count for count in range(1, 5)}
        assert len(lengths) == 1, number


@pytest.mark.parametrize("prompt", sample_tokenizer.SAMPLE_PROMPTS)
def test_every_word_of_the_sample_prompts_is_one_token(tokenizer, prompt):
    words = tokenizer._processor.encode(prompt_text(prompt, [5]), out_type=str)  # noqa: SLF001
    assert words == [
        "Task", ":", *(f"\u2581{word}" for word in prompt.removesuffix(".").split()), ".,",
        "\u2581State", ":", "\u25815", ";", "<0x0A>", "Action", ":", "\u2581",
    ]  # fmt: skip
    assert tokenizer.worst_case_length(prompt, 23) <= 48


@hypothesis.given(STATES)
@hypothesis.settings(max_examples=30)
def test_no_state_is_longer_than_the_worst_case(tokenizer, state):
    for prompt in (PROMPT, "Put 3 cans, then 12; into_the bin"):
        ids = tokenizer.encode(prompt, state_bins(state).tolist())
        assert len(ids) <= tokenizer.worst_case_length(prompt, 23)


def test_all_challenge_prompts_fit_the_default(tokenizer):
    for file in sample_tokenizer.PROMPTS.glob("*.json"):
        tokenizer.check_prompts(json.loads(file.read_text()), num_state=23, max_tokens=224)


def test_prompts_that_do_not_fit_are_refused_by_task_name(tokenizer):
    prompts = {"short": PROMPT, "long": PROMPT * 4, "longer": PROMPT * 5}
    longest = tokenizer.worst_case_length(prompts["longer"], 23)
    with pytest.raises(ValueError, match=rf"48 tokens: long \(\d+ tokens\), longer \({longest} tokens\)") as caught:
        tokenizer.check_prompts(prompts, num_state=23, max_tokens=48)
    assert f"--model.max-prompt-tokens {longest}" in str(caught.value)
    assert "short" not in str(caught.value)
    tokenizer.check_prompts(prompts, num_state=23, max_tokens=longest)


def test_a_prompt_that_does_not_fit_is_refused(tokenizer):
    needed = tokenizer.worst_case_length(PROMPT, 23)
    state = np.zeros(23)
    assert tokenizer.tokenize(PROMPT, state, needed)[1].all()
    with pytest.raises(
        ValueError, match=rf"'Press the red.*' takes {needed} tokens .* --model.max-prompt-tokens {needed}"
    ):
        tokenizer.tokenize(PROMPT, state, needed - 1)


def test_the_transform_adds_tokens(tokenizer):
    sample = {"prompt": PROMPT, "state": np.linspace(-1, 1, 23)}
    tokenized = TokenizePromptAndState(tokenizer, 64)(sample)
    tokens, mask = tokenizer.tokenize(PROMPT, sample["state"], 64)
    np.testing.assert_array_equal(tokenized["prompt_tokens"], tokens)
    np.testing.assert_array_equal(tokenized["prompt_mask"], mask)
    assert tokens.dtype == np.int32
    assert mask.dtype == bool
    assert sample.keys() == {"prompt", "state"}


def test_without_a_state_the_text_is_the_prompt_and_the_tokens_of_a_line_break(tokenizer):
    """Source: openpi `models/tokenizer.py`, whose text for pi0 this is."""
    processor = tokenizer._processor  # noqa: SLF001
    expected = [2, *processor.encode("press the red button"), *processor.encode("\n")]
    sample = {"prompt": " press_the red\nbutton\n", "state": np.full(23, 0.5)}
    tokenized = TokenizePrompt(tokenizer, 48)(sample)
    assert tokenized["prompt_tokens"].tolist() == expected + [0] * (48 - len(expected))
    assert tokenized["prompt_mask"].tolist() == [True] * len(expected) + [False] * (48 - len(expected))
    assert tokenizer.decode(expected[1:]) == "press the red button\n"
    other = TokenizePrompt(tokenizer, 48)(sample | {"state": np.zeros(23)})
    np.testing.assert_array_equal(other["prompt_tokens"], tokenized["prompt_tokens"])


def test_without_a_state_the_length_is_that_of_the_text(tokenizer):
    length = len(tokenizer.encode(PROMPT, None))
    assert tokenizer.worst_case_length(PROMPT, None) == length
    assert tokenizer.tokenize(PROMPT, None, length)[1].all()
    needed = f"raise it with --model.max-prompt-tokens {length}"
    with pytest.raises(ValueError, match=rf"takes {length} tokens, the limit is {length - 1}; {needed}"):
        tokenizer.tokenize(PROMPT, None, length - 1)
    tokenizer.check_prompts({"press": PROMPT}, None, length)
    with pytest.raises(ValueError, match=rf"^the prompts of these tasks take more than 5 tokens: press \({length} to"):
        tokenizer.check_prompts({"press": PROMPT}, None, 5)


def test_worker_processes_receive_the_model(tokenizer, tmp_path):
    path = tmp_path / "copy.model"
    path.write_bytes(tokenizer.model_bytes)
    original = Tokenizer(path)
    expected = original.encode(PROMPT, [1, 2, 3])
    path.unlink()
    assert pickle.loads(pickle.dumps(original)).encode(PROMPT, [1, 2, 3]) == expected


def test_nothing_is_read_before_it_is_needed():
    assert Tokenizer(pathlib.Path("not/there.model")).path.name == "there.model"
