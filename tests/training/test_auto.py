"""Attacks: `auto` that stays, comes without a reason, overrules what was given, or asks for what it doesn't need; rules
that miss the published settings at the published sizes.

Run: pytest tests/training/test_auto.py
"""

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swav.config import HARMLESS, Recipe, settings_hash
from swav.errors import ConfigError, DataError
from swav.recipe_files import load_recipe
from swav.training.auto import DEPENDENT, EXPLAINED, derive
from swav.training.choices import MachineAndData


def everything_fits(recipe: Recipe, most: int) -> tuple[int, str]:
    return most, "tried"


def settled(num_images: int, recipe: str = "auto", facts: dict[str, Any] | None = None, **given: Any) -> Recipe:
    return derived(num_images, recipe, facts, **given)[0]


def derived(
    num_images: int, recipe: str = "auto", facts: dict[str, Any] | None = None, **given: Any
) -> tuple[Recipe, dict[str, str]]:
    known = {"batch_fits": everything_fits} | (facts or {})
    return derive(load_recipe(recipe, {"data": "photos"} | given), MachineAndData(num_images, **known))


GPU: dict[str, Any] = {"device": "cuda", "cpus": 16, "has_bf16": True}


# -- every key


@given(
    images=st.integers(16, 10**8),
    side=st.integers(1, 5000),
    world_size=st.sampled_from([1, 2, 3, 8]),
    device=st.sampled_from(["cpu", "cuda"]),
    room=st.integers(1, 512),
    grey=st.booleans(),
    hours=st.none() | st.floats(0.01, 1000),
)
def test_every_auto_becomes_a_value_with_a_reason_for_any_images_and_machine(
    images, side, world_size, device, room, grey, hours
):
    wanted = load_recipe(
        "default", dict.fromkeys(set(Recipe.model_fields) - {"data", "hours"}, "auto") | {"hours": hours}
    )
    facts = MachineAndData(
        images,
        side,
        world_size,
        device,
        is_grey=lambda: grey,
        batch_fits=lambda recipe, most: (min(most, room), "tried"),
        throughput=lambda recipe: 100.0,
    )
    chosen, reasons = derive(wanted, facts)
    left = {key for key in Recipe.model_fields if chosen.left_at_auto(key)}
    assert left == set(DEPENDENT)
    assert set(reasons) == set(Recipe.model_fields) - set(DEPENDENT) - {"data", "hours"} and all(reasons.values())
    assert {key for key, reason in reasons.items() if reason != "the default"} == EXPLAINED
    assert chosen.batch <= images and chosen.batch % world_size == 0
    assert chosen.queue_length == 0 or chosen.queue_length % chosen.batch == 0
    assert max(chosen.view_sizes) <= max(side, 8)
    assert chosen.hours is None


def test_what_was_given_is_not_derived():
    chosen, reasons = derived(50_000, lr=0.123, epochs=7, queue_length=0, blur=1.0)
    assert (chosen.lr, chosen.epochs, chosen.queue_length, chosen.blur) == (0.123, 7, 0, 1.0)
    assert not {"lr", "epochs", "queue_length", "blur"} & set(reasons)


def test_nothing_is_measured_that_no_setting_depends_on():
    def refuse(*_: Any) -> Any:
        raise AssertionError("measured in vain")

    asked = {"is_grey": refuse, "batch_fits": refuse, "throughput": refuse}
    settled(50_000, "imagenette", asked)
    settled(50_000, "auto", asked, batch=64, micro_batch=0, jitter=[0, 0, 0, 0], grayscale=0)


# -- the published settings


def test_derived_values_meet_the_published_ones():
    chosen = settled(1_281_167, facts=GPU | {"side": 375})
    published = load_recipe("swav_200ep_bs256", {"data": "photos"})
    of_the_machine, ours = {"device", "precision", "workers"}, {"warmup_epochs"}  # which that recipe has not
    same = set(Recipe.model_fields) - of_the_machine - ours - {"check_every_epochs"}  # auto in both
    assert {key: getattr(chosen, key) for key in same} == {key: getattr(published, key) for key in same}
    large = settled(1_281_167, facts=GPU, batch=4096)
    assert large.lr == pytest.approx(4.8, rel=0.01) and large.queue_length == 0


@pytest.mark.parametrize("width", [2, 4, 5])
def test_wide_trunks_get_the_wide_head(width):
    assert settled(10_000, facts=GPU, width=width).head_hidden == 8192


def test_a_transformer_gets_what_transformers_are_trained_with():
    chosen, reasons = derived(50_000, facts=GPU, backbone="timm:vit_small_patch16_224")
    assert (chosen.optimizer, chosen.weight_decay, chosen.decay_vectors, chosen.clip_gradient) == (
        "adamw",
        0.05,
        False,
        3.0,
    )
    assert chosen.lr == pytest.approx(5e-4 * chosen.batch / 256) and "transformer" in reasons["lr"]
    convolutional = settled(50_000, facts=GPU, backbone="timm:convnext_tiny")
    assert convolutional.optimizer == "larc" and convolutional.clip_gradient == 0 and convolutional.decay_vectors


# -- images and machine


@pytest.mark.parametrize(
    ("side", "device", "views"),
    [
        (375, "cuda", "2x224+6x96"),
        (224, "cuda", "2x224+6x96"),
        (128, "cuda", "2x128+6x48"),
        (64, "cuda", "2x64+6x32"),
        (32, "cuda", "2x32"),
        (28, "cuda", "2x28"),
        (5, "cuda", "2x8"),
        (2000, "cpu", "2x64+4x32"),
        (32, "cpu", "2x32"),
    ],
)
def test_crops_follow_the_size_of_the_images_and_the_machine(side, device, views):
    crops = settled(10_000, facts={"side": side, "device": device}).crops
    assert "+".join(f"{crop.count}x{crop.size}" for crop in crops) == views


def test_grey_images_lose_the_operations_on_colours_and_nothing_else():
    grey, reasons = derived(10_000, facts=GPU | {"is_grey": lambda: True})
    assert (grey.jitter, grey.grayscale) == ((0.8, 0.8, 0, 0), 0)
    assert "grey" in reasons["jitter"] and "grey" in reasons["grayscale"]
    coloured = settled(10_000, facts=GPU)
    assert (coloured.jitter, coloured.grayscale) == ((0.8, 0.8, 0.8, 0.2), 0.2)
    others = set(Recipe.model_fields) - {"jitter", "grayscale"}
    assert all(getattr(grey, key) == getattr(coloured, key) for key in others)


def test_a_small_machine_gets_a_small_network():
    on_cpu, on_gpu = settled(10_000, facts={"side": 375}), settled(10_000, facts=GPU | {"side": 375})
    assert (on_cpu.backbone, on_cpu.width, on_cpu.stem) == ("resnet18", 0.5, "half")
    assert (on_gpu.backbone, on_gpu.width, on_gpu.stem) == ("resnet50", 1, "imagenet")
    assert settled(10_000, facts=GPU | {"side": 32}).stem == "small"


def test_a_timm_model_keeps_its_own_shape():
    chosen = settled(10_000, backbone="timm:vit_tiny_patch16_224", facts=GPU | {"side": 32})
    assert (chosen.width, chosen.stem) == (1, "imagenet")


@pytest.mark.parametrize(("images", "device", "batch"), [(10**6, "cuda", 256), (10**6, "cpu", 64), (300, "cpu", 16)])
def test_a_batch_suits_machine_and_images(images, device, batch):
    assert settled(images, facts={"device": device}).batch == batch


@pytest.mark.parametrize(("images", "batch"), [(12, 8), (3, 2), (2, 2)])
def test_few_images_make_one_batch(images, batch):
    assert settled(images).batch == batch


def test_memory_bounds_the_micro_batch_and_says_so():
    small = GPU | {"batch_fits": lambda recipe, most: (min(most, 100), "tried on this GPU")}
    chosen, reasons = derived(10**6, facts=small)
    assert (chosen.batch, chosen.micro_batch) == (256, 64) and "tried on this GPU" in reasons["micro_batch"]
    assert settled(10**6, facts=GPU).micro_batch == 0
    large = settled(10**6, "swav_200ep", small, micro_batch="auto")
    assert (large.batch, large.micro_batch) == (4096, 64)
    assert settled(10**6, "swav_200ep", small | {"world_size": 64}, micro_batch="auto").micro_batch == 0


def test_where_the_batch_goes_through_at_once_memory_bounds_the_batch():
    small = GPU | {"batch_fits": lambda recipe, most: (100, "tried on this GPU")}
    chosen, reasons = derived(10**6, facts=small, micro_batch=0)
    assert chosen.batch == 64 and "tried on this GPU" in reasons["batch"]
    assert (
        settled(10**6, facts=GPU | {"batch_fits": lambda *_: pytest.fail("asked in vain")}, micro_batch=8).batch == 256
    )


def test_what_memory_is_asked_about_is_settled():
    def check(recipe: Recipe, most: int) -> tuple[int, str]:
        assert most == 32  # of each of two processes
        wanted = (
            "precision",
            "crops",
            "backbone",
            "width",
            "stem",
            "head_hidden",
            "head_dim",
            "prototypes",
            "in_channels",
        )
        assert not recipe.left_at_auto(*wanted)
        return most, "tried"

    settled(10_000, facts={"batch_fits": check, "world_size": 2}, head_dim="auto", in_channels="auto")


def test_too_few_images_for_the_processes_are_refused():
    with pytest.raises(DataError, match=r"at least 2 images per process \(4\), found 3"):
        settled(3, facts={"world_size": 2})


def test_a_batch_that_the_processes_cannot_share_is_refused():
    with pytest.raises(ConfigError, match="batch: expected a multiple of the 3 processes, found 256"):
        settled(10_000, "default", {"world_size": 3})


@pytest.mark.parametrize(("batch", "micro_batch", "koleo"), [(64, 0, 0.3), (4, 2, 0.3), (4, 1, 0.0), (2, 0, 0.0)])
def test_embeddings_are_spread_unless_a_process_has_one_image_at_a_time(batch, micro_batch, koleo):
    world_size = 2 if batch == 2 else 1
    assert settled(1000, facts={"world_size": world_size}, batch=batch, micro_batch=micro_batch).koleo == koleo


@pytest.mark.parametrize(
    ("images", "device", "epsilon"), [(5000, "cpu", 0.02), (100_000, "cuda", 0.03), (1_281_167, "cuda", 0.05)]
)
def test_codes_are_sharper_with_few_prototypes_and_sharpest_with_a_small_batch(images, device, epsilon):
    assert settled(images, facts={"device": device}).epsilon == epsilon


@pytest.mark.parametrize(("epochs", "batch", "queue"), [(29, 64, 0), (30, 64, 1216), (100, 1024, 0)])
def test_a_queue_is_left_out_where_it_would_do_harm_or_nothing(epochs, batch, queue):
    chosen = settled(5000, epochs=epochs, batch=batch)
    assert chosen.queue_length == queue and (not queue or chosen.queue_start_epoch == 15)


# -- hours


@pytest.mark.parametrize(
    ("hours", "images", "epochs", "words"),
    [
        (12, 200_000, 194, "12 hours at 900 images/s"),
        (0.01, 200_000, 1, "less than one pass over 200000 images: it takes 4 minutes, 3 minutes more"),
        (12, 300, 2000, "at most 2000"),
        (1, 360_000, 9, "an epoch takes 7 minutes, so the end may be off by half of that"),
        (1, 2_000_000, 2, "planned anew after every epoch: an epoch takes 37 minutes"),
        (1, 2_200_000, 1, "with no epoch's end on the way to plan anew at: an epoch takes 41 minutes"),
        (1, 324_000, 10, "planned anew after every epoch, to end within a tenth of the time"),
    ],
)
def test_hours_become_epochs_at_the_measured_pace(hours, images, epochs, words):
    chosen, reasons = derived(images, facts=GPU | {"throughput": lambda recipe: 900.0}, hours=hours)
    assert chosen.epochs == epochs and words in reasons["epochs"]


def test_the_time_that_a_run_took_before_its_first_step_is_not_planned_with():
    facts = GPU | {"throughput": lambda recipe: 900.0, "spent": lambda: 360.0}
    assert derived(324_000, facts=facts, hours=1)[0].epochs == 9
    assert derived(300, facts=facts, hours=0.05)[0].epochs == 1  # they are over before the first step


def test_the_pace_is_asked_of_settings_that_lack_nothing_but_the_length():
    def check(recipe: Recipe) -> float:
        left = {key for key in Recipe.model_fields if recipe.left_at_auto(key)}
        assert left <= {
            *DEPENDENT,
            "epochs",
            "warmup_epochs",
            "queue_length",
            "queue_start_epoch",
            "check_every_epochs",
        }
        return 900.0

    settled(10_000, facts={"throughput": check}, hours=1, flip="auto", blur_sigma="auto", seed="auto")


# -- several processes, micro-batches, compiling


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({}, "batch: expected a multiple of the 3 processes, found 256; start 2, or begin a run with another batch"),
        (
            {"batch": 258, "micro_batch": 40},
            "micro_batch: expected a divisor of the 86 images per process, found 40; use 2",
        ),
        (
            {"batch": 255, "queue_length": 3841},
            "queue_length: expected a multiple of the 3 processes, found 3841; start 1",
        ),
        ({"batch": 3, "koleo": 0.1}, "koleo: expected at least 2 images per forward of a process, found 1"),
    ],
)
def test_what_the_processes_cannot_share_is_refused_with_a_number_that_fits(changes, complaint):
    with pytest.raises(ConfigError) as caught:
        derive(Recipe(**changes), MachineAndData(1000, world_size=3))
    assert complaint in str(caught.value)


@pytest.mark.parametrize("changes", [{"micro_batch": 5}, {"koleo": 0.1, "batch": 3}])
def test_what_cannot_be_shared_is_refused_before_anything_is_timed(changes):
    with pytest.raises(ConfigError):
        derive(
            Recipe(epochs="auto", hours=1.0, **changes), MachineAndData(1000, world_size=3 if "koleo" in changes else 1)
        )


@pytest.mark.parametrize(
    ("micro_batch", "world_size", "at_a_time"), [(0, 1, 256), (0, 4, 64), (64, 2, 64), (500, 2, 128)]
)
def test_a_micro_batch_is_at_most_what_a_process_has(micro_batch, world_size, at_a_time):
    chosen, _ = derive(Recipe(micro_batch=micro_batch), MachineAndData(1000, world_size=world_size))
    assert chosen.images_per_forward(world_size) == at_a_time


@pytest.mark.parametrize(
    ("sync_bn", "alone", "together"), [("auto", False, True), (True, False, True), (False, False, False)]
)
def test_statistics_are_shared_where_there_are_several_processes_and_auto_stays_right_for_another_number(
    sync_bn, alone, together
):
    chosen, _ = derive(Recipe(sync_bn=sync_bn), MachineAndData(1000, world_size=2))
    assert chosen.sync_bn == sync_bn
    assert (chosen.synchronises(1), chosen.synchronises(2)) == (alone, together)


@pytest.mark.parametrize(
    ("group", "processes", "shared"), [(None, 6, 6), (8, 64, 8), (8, 8, 8), (8, 3, 3), (2, 6, 2), (1, 4, 1), (8, 1, 1)]
)
def test_statistics_are_of_a_group_or_of_all_where_there_are_fewer(group, processes, shared):
    chosen, _ = derive(
        Recipe(sync_bn_group=group, batch=192, queue_length=0), MachineAndData(1000, world_size=processes)
    )
    assert chosen.sync_bn_group == group and chosen.processes_per_statistic(processes) == shared


def test_a_group_that_does_not_divide_the_processes_is_refused():
    with pytest.raises(ConfigError, match=r"a divisor of the 12 processes, found 8; use sync_bn_group=6, or null"):
        derive(Recipe(sync_bn_group=8, batch=192), MachineAndData(1000, world_size=12))
    with pytest.raises(ValueError, match="sync_bn_group: expected null with sync_bn=false, found 8"):
        Recipe(sync_bn=False, sync_bn_group=8)


def test_a_run_of_before_there_were_some_settings_has_the_same_hash():
    later = {"sync_bn_group", "white_level", "alpha", "final_teacher_momentum", "final_weight_decay"}
    values = {k: v for k, v in Recipe().model_dump(mode="json").items() if k not in HARMLESS | later}
    assert settings_hash(Recipe()) == hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    for changed in (
        {"sync_bn_group": 8},
        {"alpha": "ignore"},
        {"final_teacher_momentum": 1.0},
        {"final_weight_decay": 0.4},
    ):
        assert settings_hash(Recipe(**changed)) != settings_hash(Recipe())


def test_compiling_on_a_cpu_is_refused_with_the_reason():
    with pytest.raises(ConfigError, match=r"compile=true: expected a GPU, found device=cpu, where .* gains nothing"):
        derive(Recipe(compile=True), MachineAndData(1000))
    assert derive(Recipe(compile=True), MachineAndData(1000, device="cuda"))[0].compile
