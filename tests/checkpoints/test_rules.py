import pathlib
import re

import numpy as np
import pytest

from openpi_b1k.checkpoints import openpi_rules
from openpi_b1k.checkpoints.rules import Rule, flatten, rename, require_same_keys, unflatten
from openpi_b1k.config.model import GEMMA_TINY, SIGLIP_TINY, ModelConfig
from openpi_b1k.models.pi0 import Model

RULES = (Rule("a/{kind}", "x/{kind}"), Rule("b", "y"))


def test_words_stand_for_one_part_of_the_path():
    assert rename({"a/kernel": 1, "a/bias": 2, "b": 3}, RULES) == {"x/kernel": 1, "x/bias": 2, "y": 3}
    assert Rule("a/{kind}", "x/{kind}").apply("a/b/c") is None


def test_an_unknown_key_is_refused_with_the_nearest_rules():
    with pytest.raises(ValueError, match=re.escape("no rule for 'a/bias/c'; nearest rules: 'a/{kind}'")):
        rename({"a/bias/c": 1}, RULES)


def test_a_key_that_matches_twice_is_refused():
    rules = (*RULES, Rule("a/bias", "z"))
    expected = "'a/bias' matches 2 rules, expected exactly one: ['a/{kind}', 'a/bias']"
    with pytest.raises(ValueError, match=re.escape(expected)):
        rename({"a/bias": 1}, rules)


def test_a_target_filled_twice_is_refused():
    with pytest.raises(ValueError, match="'y' is filled twice, by 'b' and 'c'"):
        rename({"b": 1, "c": 2}, (*RULES, Rule("c", "y")))


def test_rules_must_hold_the_same_words():
    with pytest.raises(ValueError, match=re.escape("'a/{kind}' and 'x/{other}' must hold the same {words}")):
        Rule("a/{kind}", "x/{other}")


def test_missing_and_unknown_keys_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="the checkpoint") as refusal:
        require_same_keys({"vlm/q", "head"}, {"vlm/q", "heads"}, "the checkpoint")
    message = refusal.value.args[0]
    assert "the checkpoint does not hold the expected parameters" in message
    assert "missing 'heads' (nearest: 'head')" in message
    assert "unknown 'head' (nearest: 'heads')" in message
    require_same_keys(["a"], {"a": 1}, "the checkpoint")


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert unflatten(flatten(tree)) == tree


KINDS = ("pi05", "pi0")


def params_of(kind: str) -> dict:
    sizes = {"vision": SIGLIP_TINY, "vlm": GEMMA_TINY, "action_expert": GEMMA_TINY}
    return Model(ModelConfig(kind, **sizes, vocab_size=8, image_size=28, point_clouds=True)).abstract_params()


@pytest.fixture(scope="module", params=KINDS)
def params(request) -> dict:
    return params_of(request.param)


def test_openpi_names_there_and_back_keep_the_very_leaves(params):
    there = openpi_rules.to_openpi(params)
    back = flatten(openpi_rules.from_openpi(there))
    assert all(back[name] is leaf for name, leaf in flatten(params).items())
    assert back.keys() == flatten(params).keys()
    assert (
        there["PaliGemma"]["llm"]["layers"]["attn"]["kv_einsum_1"]["w"]
        is (params["action_expert"]["layers"]["attn"]["kv"]["kernel"])
    )


def test_every_openpi_rule_is_used():
    names = {name for kind in KINDS for name in flatten(params_of(kind))}
    for rule in openpi_rules.TO_OPENPI:
        assert any(rule.apply(name) for name in names), rule


def test_a_name_of_another_model_is_refused(params):
    tree = openpi_rules.to_openpi(params)
    tree["stage_proj"] = {"kernel": np.zeros(3)}
    with pytest.raises(ValueError, match=r"no rule for 'stage_proj/kernel'; nearest rules: .*state_proj"):
        openpi_rules.from_openpi(tree)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_shows_in_either_names_and_in_a_part_of_them(kind):
    params = params_of(kind)
    ours, theirs = list(flatten(params)), list(flatten(openpi_rules.to_openpi(params)))
    assert openpi_rules.kind_of(ours) == openpi_rules.kind_of(theirs) == kind
    other = KINDS[1 - KINDS.index(kind)]
    alone = [name for name in ours if name not in flatten(params_of(other))]
    assert len(alone) == {"pi05": 10, "pi0": 9}[kind]
    assert all(openpi_rules.kind_of([name]) == kind for name in alone)
    assert openpi_rules.kind_of(set(ours) - set(alone)) is None
    assert openpi_rules.kind_of([*ours, *flatten(params_of(other))]) is None


def test_a_checkpoint_of_the_other_kind_is_refused_with_what_to_use():
    names = {kind: flatten(params_of(kind)) for kind in KINDS}
    pi0 = re.escape("/x holds a model of kind pi0, but the config asks for pi05: use recipe pi0_b1k, or give --model.k")
    with pytest.raises(ValueError, match=pi0):
        openpi_rules.require_kind(names["pi0"], "pi05", "/x")
    with pytest.raises(ValueError, match=r"of kind pi05, .* for pi0: use recipe pi05_b1k, or give --model.kind pi05"):
        openpi_rules.require_kind(names["pi05"], "pi0", "/x")
    for kind in KINDS:
        openpi_rules.require_kind(names[kind], kind, "/x")
        openpi_rules.require_kind(["vision/pos_embedding"], kind, "/x")
    for recipe in openpi_rules.RECIPES.values():
        assert (pathlib.Path(__file__).parents[2] / "configs" / f"{recipe}.py").is_file()


def test_value_leaves_there_and_back():
    tree = {"a": {"b": 1}, "c": 2}
    stored = openpi_rules.with_value_leaves(tree)
    assert stored == {"params": {"a": {"b": {"value": 1}}, "c": {"value": 2}}}
    assert openpi_rules.without_value_leaves(stored) == tree


def test_trees_stored_otherwise_are_refused():
    with pytest.raises(ValueError, match=re.escape("expected the one root 'params'; got ['weights']")):
        openpi_rules.without_value_leaves({"weights": {}})
    with pytest.raises(ValueError, match=re.escape("every leaf under 'value', as openpi writes NNX parameters")):
        openpi_rules.without_value_leaves({"params": {"a": 1}})
