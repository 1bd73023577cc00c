import pytest

from openpi_b1k.data.index.wording import object_name, skill_text


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("radio_89", "radio"),
        ("coffee_table_koagbh_0", "coffee table"),
        ("can_of_soda_114", "can of soda"),
        ("floors", "floors"),
        ("floors_xwkbnp_0", "floors"),
        ("half_beet_211_0", "half beet"),
        ("half-log-176-0", "half log"),
        ("diced__vidalia_onion", "diced vidalia onion"),
        ("left", "left"),
        ("bell_pepper_213", "bell pepper"),  # six letters, but a word
        ("wine_bottle", "wine bottle"),
        ("half_banana_211_0", "half banana"),
        ("kettle_12", "kettle"),
        ("89", "89"),
    ],
)
def test_an_object_is_named_by_its_category(identifier, name):
    assert object_name(identifier) == name


@pytest.mark.parametrize(
    ("description", "objects", "text"),
    [
        ("move to", ["radio_89", "coffee_table_koagbh_0"], "move to radio"),
        ("pick up from", ["radio_89", "coffee_table_koagbh_0"], "pick up radio from coffee table"),
        ("pick up from", ["radio_89"], "pick up radio"),
        ("press", ["radio_89"], "press radio"),
        ("place on next to", ["cup_1", "desk_abcdef_0", "plate_2"], "place cup on desk next to plate"),
        ("place on next to", ["cup_1", "desk_abcdef_0"], "place cup on desk"),
        ("place in next to", ["cup_1", "shelf_2", "plate_2"], "place cup in shelf next to plate"),
        ("place on", ["plate_207", "plate_208"], "place plate on plate"),
        ("sweep off", ["half_log_176_0", "half_log_176_1", "driveway_umalys_0"], "sweep half log off driveway"),
        ("turn on switch", ["lamp_3"], "turn on switch lamp"),
        ("attach", ["camera_1", "tripod_2"], "attach camera, tripod"),
        ("turn to", ["sink_4"], "turn to sink"),
        ("push to", ["chair_1", "desk_2"], "push chair to desk"),
        ("tip over", [], "tip over"),
        ("move to", [], "move to"),
    ],
)
def test_a_skill_and_its_objects_in_words(description, objects, text):
    assert skill_text(description, tuple(objects)) == text
