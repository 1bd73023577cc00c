import json

import pytest

from openpi_b1k.serving.prompts import Entry, PromptBook, read_schedule, task_name
from openpi_b1k.serving.tasks import NUM_TASKS_2025, TASK_NAMES

TRAINED = {"turning_on_radio": "Turn on the radio.", "can_meat": "Can the meat."}


def test_the_challenges_tasks():
    assert len(TASK_NAMES) == len(set(TASK_NAMES)) == 100
    assert (TASK_NAMES[0], TASK_NAMES[NUM_TASKS_2025 - 1]) == ("turning_on_radio", "make_pizza")
    assert (TASK_NAMES[NUM_TASKS_2025], TASK_NAMES[99]) == ("freeze_fruit", "sorting_books_on_shelf")


def test_numbers_are_the_challenges_or_positions_among_other_tasks():
    assert task_name(4, TRAINED) == "can_meat"
    assert task_name(1, {"press_red": "Press.", "press_blue": "Press."}) == "press_blue"
    for wrong, trained, last in ((-1, TRAINED, 99), (100, TRAINED, 99), (1, {"press_red": "Press."}, 0)):
        with pytest.raises(ValueError, match=rf"task_id must be in \[0, {last}\]; got {wrong}"):
            task_name(wrong, trained)


def test_what_wins():
    schedule = {"can_meat": (Entry(2, "Open it."), Entry(None, "Close it."))}
    book = PromptBook(schedule=schedule)
    assert [book.prompt("can_meat", None, step, TRAINED) for step in (0, 1, 2, 999)] == ["Open it."] * 2 + [
        "Close it."
    ] * 2
    assert book.prompt("turning_on_radio", None, 0, TRAINED) == "Turn on the radio."
    assert book.prompt("can_meat", "Wait.", 0, TRAINED) == "Wait."
    assert book.prompt(None, "Wait.", 0, TRAINED) == "Wait."
    assert PromptBook("Dance.", schedule).prompt("can_meat", "Wait.", 0, TRAINED) == "Dance."


def test_nothing_to_say_is_an_error():
    with pytest.raises(ValueError, match="nothing says what to do: send a task_id or a prompt"):
        PromptBook().prompt(None, None, 0, TRAINED)
    with pytest.raises(
        ValueError, match=r"not trained on task 'picking_up_trash'.* it knows turning_on_radio, can_meat"
    ):
        PromptBook().prompt("picking_up_trash", None, 0, TRAINED)


def test_a_schedule_is_read(tmp_path):
    path = tmp_path / "schedule.json"
    entries = [{"until_step": 120, "prompt": "Open."}, {"until_step": None, "prompt": "Close."}]
    path.write_text(json.dumps({"can_meat": entries}))
    assert read_schedule(path) == {"can_meat": (Entry(120, "Open."), Entry(None, "Close."))}


def entry(step, prompt="Go."):
    return {"until_step": step, "prompt": prompt}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        ("[]", "must map task names to lists of prompts; got a list"),
        ({"can_meet": [entry(None)]}, "no task 'can_meet'; did you mean 'can_meat'"),
        ({"can_meat": []}, "needs a list of at least one prompt"),
        ({"can_meat": [{"prompt": "Go."}]}, "must list"),
        ({"can_meat": [entry(None, " ")]}, "is empty or no text"),
        ({"can_meat": [entry(5)]}, r"be null in the last entry; got \[5\]"),
        ({"can_meat": [entry(5), entry(5), entry(None)]}, "must rise from 1 on"),
        ({"can_meat": [entry(0), entry(None)]}, "must rise from 1 on"),
        ({"can_meat": [entry(None), entry(None)]}, "must rise from 1 on"),
        ({"can_meat": [entry(True), entry(None)]}, "must rise from 1 on"),
    ],
)
def test_a_wrong_schedule_is_refused(tmp_path, content, reason):
    path = tmp_path / "schedule.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=reason):
        read_schedule(path)


def test_no_schedule_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no schedule of prompts at"):
        read_schedule(tmp_path / "none.json")
