"""Attacks: settings that are not what was written. YAML's traps, typing's leniency, combinations that switch something
off in silence, values that do not survive being saved, keys that refuse `auto`.

Run: pytest tests/test_config.py
"""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav import config
from swav.config import MIN_EPSILON, Crop, Recipe
from swav.errors import ConfigError, did_you_mean
from swav.evaluation.catalog import CATALOG
from swav.evaluation.settings import SuiteSettings
from swav.recipe_files import load_recipe, parse_overrides, to_yaml, validated
from swav.strict_yaml import read_yaml


def saved_and_read(recipe: Recipe) -> Recipe:
    return validated(Recipe, read_yaml(to_yaml(recipe), "saved"), "saved")


# -- YAML


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-06", "+1e-6", "0.000001", ".000001"])
def test_a_small_number_is_a_number_however_it_is_written(text):
    assert read_yaml(f"weight_decay: {text}", "test") == {"weight_decay": 1e-6}


@pytest.mark.parametrize(
    "text", ["yes", "no", "on", "Off", "y", "12:30:45", "0777", "0x1F", "0b11", "2026-01-31", "~x"]
)
def test_words_that_plain_yaml_takes_for_something_else_stay_text(text):
    assert read_yaml(f"data: {text}", "test") == {"data": text}


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("null", None), ("0", 0), ("-3", -3)])
def test_what_is_special_stays_special(text, value):
    read = read_yaml(f"key: {text}", "test")["key"]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("batch: 4\nepochs: 2\nbatch: 8", "line 3: key 'batch' is given twice"),
        ("crops: [{count: 2, count: 3}]", "line 1: key 'count' is given twice"),
        ("jitter: &a [1, 1, 1, 0]\nmean: *a", "line 2: aliases"),
        ("data: !!python/object/apply:os.system [ls]", "line 1: could not determine a constructor"),
        ("- batch", "found list"),
        ("batch", "found str"),
        ("batch: [4", "expected YAML of `key: value` lines"),
        ("batch: 4\n\tepochs: 2", "line 2"),
    ],
)
def test_yaml_that_is_wrong_or_unclear_is_refused_with_its_place(text, complaint):
    with pytest.raises(ConfigError) as caught:
        read_yaml(text, "here")
    assert complaint in str(caught.value) and str(caught.value).startswith("here")


def test_an_empty_file_means_the_defaults():
    assert read_yaml("", "test") == read_yaml("# nothing\n", "test") == {}


# -- recipes, of which test_recipes.py knows more


def test_an_unknown_recipe_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown recipe 'tinny' \(did you mean 'tiny'\?\)"):
        load_recipe("tinny")


# -- the command line and types


def test_overrides_are_read_as_yaml_and_data_as_a_path():
    words = ["lr=1e-3", "epochs=auto", "zero_init_residual=true", "data=0777: [x", "jitter=[0, 0, 0, 0]"]
    assert parse_overrides(words) == {
        "lr": 1e-3,
        "epochs": "auto",
        "zero_init_residual": True,
        "data": "0777: [x",
        "jitter": [0, 0, 0, 0],
    }


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["epochs"], "expected key=value, found 'epochs'"),
        (["=5"], "expected key=value, found '=5'"),
        (["batch=4", "batch=8"], "batch: given twice"),
        (["crops=[{"], "crops=[{"),
    ],
)
def test_overrides_that_are_not_settings_are_refused(words, complaint):
    with pytest.raises(ConfigError) as caught:
        parse_overrides(words)
    assert complaint in str(caught.value)


def test_an_unknown_key_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown key 'epoch' \(did you mean 'epochs'\?\)"):
        load_recipe("tiny", {"epoch": 5})


def refusal(**settings: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(Recipe, settings, "settings")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": True}, ["batch", "boolean"]),
        ({"lr": True}, ["lr", "True"]),
        ({"epsilon": False}, ["epsilon", "boolean"]),
        ({"batch": 2.5}, ["batch", "2.5"]),
        ({"batch": "many"}, ["batch", "'many'"]),
        ({"batch": 0}, ["batch", "found 0"]),
        ({"batch": None}, ["batch", "found nothing"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"weight_decay": float("inf")}, ["weight_decay", "inf"]),
        ({"lr": -0.1}, ["lr", "-0.1"]),
        ({"epsilon": MIN_EPSILON / 2}, ["epsilon", str(MIN_EPSILON)]),
        ({"flip": 1.5}, ["flip", "1.5"]),
        ({"zero_init_residual": "maybe"}, ["zero_init_residual", "'maybe'"]),
        ({"backbone": "resnet51"}, ["backbone", "'resnet50'"]),
        ({"optimizer": "sgd"}, ["optimizer", "expected larc, lars, adam, adamw or auto", "use optimizer=larc"]),
        ({"in_channels": 4}, ["in_channels", "3 (RGB) or 1 (grey)", "found 4"]),
        ({"in_channels": True}, ["in_channels", "boolean"]),
        ({"backbone": "timm:vit_small_patch16_224", "width": 2}, ["width", "timm's own", "found 2.0"]),
        ({"backbone": "timm:convnext_tiny", "stem": "small"}, ["stem", "'imagenet'", "found 'small'"]),
        ({"hours": 12}, ["hours", "epochs=auto", "found epochs=200"]),
        ({"hours": 0, "epochs": "auto"}, ["hours", "found 0"]),
        ({"sinkhorn": "none"}, ["sinkhorn", "expected global, local or auto"]),
        ({"mean": [0.5, 0.5]}, ["mean"]),
        ({"blur_kernel": 4}, ["blur_kernel", "odd", "4"]),
        ({"blur_sigma": [2.0, 0.1]}, ["blur_sigma"]),
        ({"crops": []}, ["crops", "at least 2"]),
        ({"crops": [{"count": 1, "size": 32, "scale": [0.1, 1]}]}, ["crops", "at least 2", "found 1"]),
        ({"crops": [{"count": 2, "size": 32, "scale": [1, 0.1]}]}, ["crops", "scale", "[1.0, 0.1]"]),
        ({"crops": [{"count": 2, "size": 32, "scale": [0, 1]}]}, ["crops", "scale"]),
        ({"crops": [{"count": 2, "size": 32, "scale": [0.1, 1], "colour": 1}]}, ["crops", "colour"]),
        ({"code_crops": []}, ["code_crops"]),
        ({"code_crops": [0, 0]}, ["code_crops"]),
        ({"code_crops": [8]}, ["code_crops", "below 8"]),
        ({"warmup_epochs": 200.0}, ["warmup_epochs", "below epochs (200)"]),
        ({"queue_length": 255, "queue_start_epoch": 0}, ["queue_length", "at least the batch (256)", "found 255"]),
        ({"queue_length": 3840, "queue_start_epoch": 200}, ["queue_start_epoch", "below epochs (200)", "found 200"]),
        ({"queue_length": 3840, "epochs": 15}, ["queue_start_epoch", "below epochs (15)"]),
        ({"sync_bn": "maybe"}, ["sync_bn", "'maybe'"]),
        ({"precision": "fp8"}, ["precision", "expected bf16, fp16, fp32 or auto"]),
        ({"micro_batch": -1}, ["micro_batch", "-1"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_refused_in_one_line_that_names_it(settings, words):
    message = refusal(**settings)
    assert all(word in message for word in words), message


def kinds_of_settings() -> list[type[config.Settings]]:
    benches = {kind for entry in CATALOG.values() for kind in (entry.settings, entry.settings_of("own"))}
    return [Recipe, config.WeightOptions, SuiteSettings, *sorted(benches, key=lambda kind: kind.__name__)]


ODD: list[Any] = [
    *("x", "", "\x1b[31m", None, True, -1, 0, 0.5, 1e9, math.inf, [], [1], ["a", "b", "c"], [-1, 2, 3], [0.5] * 4, {}),
    *({"a": 1}, [{"count": 2}], [{"count": 0, "size": 32, "scale": [1, 2]}], [{"size": "x", "count": 2, "scale": 1}]),
    *([[1, 2], [3]], "cuda:0", 3 + 4j, object),
]


@pytest.mark.parametrize("kind", kinds_of_settings(), ids=lambda kind: kind.__name__)
def test_no_message_is_the_library_s_whatever_is_given(kind):
    """Every key of all settings with values of any kind: one line that names the key, in words of ours."""
    told = 0
    for key in kind.model_fields:
        for value in ODD:
            try:
                validated(kind, {key: value}, "settings")
            except ConfigError as error:
                message, told = str(error), told + 1
                assert message.startswith("settings: ") and len(message.splitlines()) == 1 and message.isprintable()
                assert "expected" in message and len(message) < 400, message
                assert not re.search(
                    r"[Ii]nput|valid |should|Value error|Field required|None|pydantic", message.replace(key, "")
                ), message
    assert told > 3 * len(kind.model_fields)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "settings: device: expected cpu, cuda or auto, found 'gpu'; use device=cuda"),
        ({"device": "mps"}, "Apple's GPUs are not supported, use device=cpu"),
        ({"device": "cuda:1"}, "use device=cuda, and CUDA_VISIBLE_DEVICES=1 before the command"),
        ({"crops": 96}, "expected a list of crops or auto, found 96; as crops='[{count: 2, size: 96, scale: [0.14, 1]}]'"),
        ({"crops": [{"count": 2, "size": 32, "scale": [0.1, 2]}]}, "crops.0.scale.1: expected a number of at least 0 and at most 1"),
        ({"crops": [{"count": 2}]}, "crops.0.size: expected a value, found none; as crops="),
        ({"mean": [0.5, 0.5]}, "mean: expected a list of 3 numbers or auto, found [0.5, 0.5]; as mean='[0.485, 0.456, 0.406]'"),
        ({"jitter": [0.8, 0.8, 0.8, 0.9]}, "jitter.3: expected a number of at least 0 and at most 0.5, found 0.9"),
        ({"precision": 16}, "found 16; use precision=fp16"),
        ({"epochs": None}, "epochs: expected a whole number of at least 1 or auto, found nothing"),
        ({"teacher_momentum": 1}, "expected a number of at least 0 and below 1 or auto, found 1"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_message_says_what_a_person_needs(settings, message):
    assert message in refusal(**settings)


def test_a_hint_never_repeats_what_was_typed():
    assert did_you_mean("epochs", Recipe.model_fields) != " (did you mean 'epochs'?)"
    assert did_you_mean("epoch", Recipe.model_fields) == " (did you mean 'epochs'?)"


def test_a_queue_that_begins_late_is_welcome_where_there_is_none():
    assert Recipe(queue_length=0, queue_start_epoch=500).queue_start_epoch == 500


@pytest.mark.parametrize("key", sorted(set(Recipe.model_fields) - {"data"}))
def test_any_key_may_be_auto_and_stays_so_when_saved(key):
    recipe = validated(Recipe, {key: "auto"}, "settings")
    assert recipe.left_at_auto(key) and saved_and_read(recipe) == recipe
    assert recipe.model_dump(mode="json")[key] == "auto"


def test_a_folder_may_be_called_auto():
    assert not Recipe(data="auto").left_at_auto("data")


def test_what_is_still_to_be_derived_fits_with_anything():
    Recipe(epochs="auto", queue_length=3840, queue_start_epoch=500, warmup_epochs=300, hours=1)
    Recipe(batch="auto", queue_length=8)
    Recipe(crops="auto", code_crops=(7, 9))
    with pytest.raises(ValueError, match="blur_kernel"):
        Recipe(crops="auto", blur_kernel=4)


def test_settings_cannot_be_changed_behind_the_back():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().batch = 3  # type: ignore[misc]


# -- saved form


UNIT, NUMBERS = st.floats(0.0, 1.0), st.floats(1e-12, 1e12)
SIGMAS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: (min(pair), max(pair)))
CROPS = st.builds(
    Crop,
    count=st.integers(2, 8),
    size=st.integers(8, 512),
    scale=st.tuples(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0)).map(lambda pair: (min(pair), max(pair))),
)
RECIPES = st.builds(
    Recipe,
    data=st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0")),
    crops=st.lists(CROPS, min_size=1, max_size=3).map(tuple),
    flip=UNIT,
    jitter=st.tuples(NUMBERS, NUMBERS, NUMBERS, st.floats(0, 0.5)),
    blur_sigma=SIGMAS,
    mean=st.tuples(*3 * [st.floats(-1e6, 1e6)]),
    backbone=st.sampled_from(["resnet18", "resnet34", "resnet50"]),
    prototypes=st.just("auto") | st.integers(1, 10**9),
    epsilon=st.floats(MIN_EPSILON, 1e6),
    lr=st.just("auto") | NUMBERS,
    final_lr=st.just("auto") | UNIT,
    epochs=st.just("auto") | st.integers(16, 10**6),
    zero_init_residual=st.booleans(),
    seed=st.integers(0, 2**63),
)


@given(RECIPES)
def test_any_recipe_comes_back_from_its_saved_form(recipe):
    assert saved_and_read(recipe) == recipe


def test_the_hash_and_the_diff_see_what_shapes_the_weights_and_only_that():
    recipe = load_recipe("tiny", {"data": "a"})
    harmless = recipe.model_copy(update={"data": "b", "workers": 7, "keep_checkpoints": 9, "device": "cuda"})
    other = recipe.model_copy(update={"epsilon": 0.06})
    assert config.settings_hash(recipe) == config.settings_hash(harmless) != config.settings_hash(other)
    assert config.settings_diff(recipe, harmless) == {}
    assert config.settings_diff(recipe, other) == {"epsilon": (0.05, 0.06)}


def test_harmless_settings_exist():
    assert set(Recipe.model_fields) >= config.HARMLESS
