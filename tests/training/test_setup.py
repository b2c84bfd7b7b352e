"""Attacks: a run that goes on with other settings than it has, because another machine would choose others; a change
that slips through; settings found wrong only after the data.

Run: pytest tests/training/test_setup.py
"""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from swav import checkpoint
from swav.config import Recipe
from swav.data import manifest
from swav.data.sources.layouts import find_layout
from swav.data.sources.open import open_images
from swav.errors import ConfigError, DataError
from swav.recipe_files import load_recipe, to_yaml
from swav.training import estimate, setup, summary

CPU = torch.device("cpu")
AUTO: dict[str, Any] = dict.fromkeys(
    ("epochs", "batch", "prototypes", "lr", "crops", "workers", "width", "precision"), "auto"
)


@pytest.fixture
def wanted(shapes) -> Recipe:
    return load_recipe(
        "tiny", {"data": str(shapes), "knn_every_epochs": 0, "queue_length": 0, "queue_start_epoch": 0} | AUTO
    )


@pytest.fixture
def begun(wanted: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was begun on this machine."""
    monkeypatch.setattr(estimate, "available_memory", lambda _: 10**10)
    before = setup.prepare(wanted, tmp_path, CPU, dry_run=False)
    (tmp_path / "config.yaml").write_text(to_yaml(before.recipe))
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)  # without one it would begin anew
    return tmp_path


def another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "available_cpus", lambda: 64)
    monkeypatch.setattr(setup, "computes_in_bf16", lambda device: True)
    monkeypatch.setattr(estimate, "batch_fits", lambda *_: pytest.fail("probed again"))
    monkeypatch.setattr(setup, "short_side", lambda images: 999)


def test_on_another_machine_a_run_keeps_what_it_chose_and_only_the_workers_are_chosen_anew(wanted, begun, monkeypatch):
    first = setup.prepare(wanted, begun, CPU, dry_run=False)
    another_machine(monkeypatch)
    again = setup.prepare(wanted, begun, CPU, dry_run=False)
    changed = {key for key in Recipe.model_fields if getattr(first.recipe, key) != getattr(again.recipe, key)}
    assert changed == {"workers"} and again.recipe.workers == 8
    assert set(again.kept) >= set(AUTO) - {"workers"} and not {"workers", "device"} & set(again.kept)
    said = summary.describe(again)
    assert said.count(f"as the run in {begun} has them") == 1 and "epochs, " in said
    short = summary.kept_in_short(again)
    assert short.startswith(f"{len(again.kept)} settings as the run in {begun} has them") and len(short) < 80 + 2 * len(
        str(begun)
    )
    few = dataclasses.replace(again, kept=["lr", "epochs"])
    assert summary.kept_in_short(few) == f"lr, epochs: as the run in {begun} has them"


def test_a_finished_run_that_is_to_be_longer_is_answered_with_the_command_that_trains_on(wanted, begun, monkeypatch):
    had = setup.prepare(wanted, begun, CPU, dry_run=False)
    assert isinstance(had.recipe.epochs, int)
    state = {"step": had.total_steps, "num_images": len(had.images)}
    monkeypatch.setattr(checkpoint, "newest", lambda *_, **__: begun)
    monkeypatch.setattr(checkpoint, "read_state", lambda _: state)

    def refusal(**changes: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            setup.prepare(wanted.model_copy(update=changes), begun, CPU, dry_run=False)
        return str(caught.value)

    more = refusal(epochs=had.recipe.epochs + 7)
    command = f"swav pretrain auto data={wanted.data} init={begun} epochs=7 --out {begun}-more"
    assert (
        more.endswith(command) and len(more.splitlines()) == 1 and f"finished run of {had.recipe.epochs} epochs" in more
    )
    others = [refusal(epochs=had.recipe.epochs - 1), refusal(epochs=had.recipe.epochs + 7, epsilon=0.06)]
    state["step"] -= 1
    others.append(refusal(epochs=had.recipe.epochs + 7))  # it is not finished
    assert all("holds a run with other settings" in other and "init=" not in other for other in others)


def test_a_harmless_setting_may_be_given_anew_and_takes_effect(wanted, begun):
    again = setup.prepare(wanted.model_copy(update={"keep_checkpoints": 9, "workers": 5}), begun, CPU, dry_run=False)
    assert (again.recipe.keep_checkpoints, again.recipe.workers) == (9, 5)


def test_a_given_setting_that_differs_is_refused_with_its_difference_before_the_data_is_looked_at(wanted, begun):
    changed = wanted.model_copy(update={"lr": 0.5, "data": "/nowhere"})
    with pytest.raises(ConfigError, match=r"holds a run with other settings.*\n  lr: .* -> 0.5$"):
        setup.prepare(changed, begun, CPU, dry_run=False)
    with pytest.raises(ConfigError, match="batch: 16 -> 48"):  # and not that the queue or the images don't suit it
        setup.prepare(wanted.model_copy(update={"batch": 48}), begun, CPU, dry_run=False)


def test_hours_are_kept_and_the_speed_is_measured_once(wanted, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "throughput", lambda *_: 32.0)
    timed = wanted.model_copy(update={"hours": 0.01})
    first = setup.prepare(timed, tmp_path, CPU, dry_run=False)
    assert first.recipe.epochs == pytest.approx(0.01 * 3600 * 32 / 64, abs=1) and first.recipe.hours is None
    assert "measuring the speed" in capsys.readouterr().err
    assert first.budget is not None
    first.budget.begin()
    (tmp_path / "config.yaml").write_text(to_yaml(first.settings))
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    monkeypatch.setattr(estimate, "throughput", lambda *_: pytest.fail("measured again"))
    again = setup.prepare(timed, tmp_path, CPU, dry_run=False)
    assert (again.recipe, again.settings) == (first.recipe, first.settings)
    longer = setup.prepare(timed.model_copy(update={"hours": 1.0}), tmp_path, CPU, dry_run=False)
    assert longer.settings.hours == 1.0 and longer.recipe == first.recipe
    unsaid = setup.prepare(wanted.model_copy(update={"hours": None}), tmp_path, CPU, dry_run=False)
    assert unsaid.settings == first.settings


def test_the_first_lines_say_how_the_hours_are_kept(wanted, tmp_path, monkeypatch):
    monkeypatch.setattr(estimate, "throughput", lambda *_: 32.0)
    timed = setup.prepare(wanted.model_copy(update={"hours": 0.01}), tmp_path, CPU, dry_run=True)
    assert "time       0.01 hours, from the start of this command to its report" in summary.describe(timed)
    assert "time  " not in summary.describe(setup.prepare(wanted, tmp_path, CPU, dry_run=True))
    assert not (tmp_path / "plan.jsonl").exists()


def test_what_is_not_used_or_seems_a_mask_is_said_before_the_first_step(wanted, shapes, tmp_path):
    (tmp_path / "deep").symlink_to(shapes)
    shutil.copytree(shapes / "val", tmp_path / "more")
    run = setup.prepare(wanted.model_copy(update={"data": str(tmp_path)}), tmp_path / "out", CPU, dry_run=True)
    assert len(run.images) == 64
    assert f"warning    images in more/ of {tmp_path} are not used" in summary.describe(run)


def test_a_run_that_began_with_the_whole_of_what_is_now_splits_resumes_with_it(wanted, shapes, begun, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(shapes / "train", data / "Training")
    shutil.copytree(shapes / "val", data / "Testing")
    there = wanted.model_copy(update={"data": str(data), "knn_every_epochs": 1})
    manifest.write_roster(begun / manifest.FILE, open_images(find_layout(data, as_before=True)))
    again = setup.prepare(there, begun, CPU, dry_run=False)
    assert len(again.images) == 96 and not again.images.gone and again.labelled is None
    manifest.write_roster(begun / manifest.FILE, open_images(data))
    again = setup.prepare(there, begun, CPU, dry_run=False)
    assert len(again.images) == 64 and again.labelled is not None


def test_a_backbone_is_checked_before_the_data(wanted, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'vit_tiny_patch16_224'"):
        setup.prepare(
            wanted.model_copy(update={"backbone": "timm:vit_tiny_patch16_244", "data": "/nowhere"}),
            tmp_path,
            CPU,
            False,
        )
    with pytest.raises(DataError, match="nowhere"):
        setup.prepare(wanted.model_copy(update={"data": "/nowhere"}), tmp_path, CPU, dry_run=False)


def test_codes_that_are_balanced_per_process_are_named_in_the_output(wanted, tmp_path):
    local = setup.prepare(wanted.model_copy(update={"sinkhorn": "local"}), tmp_path, CPU, dry_run=True)
    assert "warning    sinkhorn=local: codes are balanced over each process (1) alone" in summary.describe(local)
    assert "sinkhorn" not in summary.describe(setup.prepare(wanted, tmp_path, CPU, dry_run=True))


def test_numbers_of_one_are_told_as_such(wanted, tmp_path):
    one = wanted.model_copy(
        update={"epochs": 1, "warmup_epochs": 1.0, "micro_batch": 1, "batch": 64, "knn_every_epochs": 1.0}
    )
    one = one.model_copy(update={"warmup_epochs": "auto", "queue_length": "auto", "queue_start_epoch": "auto"})
    said = summary.describe(setup.prepare(one, tmp_path, CPU, dry_run=True))
    assert "1 = 1 epoch x 1, batch 64 over 1 process\n" in said and "1 image at a time of 64" in said
    assert "kNN every 1 epoch\n" in said and not re.search(r"\b1 (epochs|images|steps|processes)\b", said)


def test_fewer_images_than_prototypes_are_told_before_the_first_step(wanted, tmp_path):
    for prototypes, warned in ((64, False), (65, True), ((40, 65), True)):
        some = setup.prepare(wanted.model_copy(update={"prototypes": prototypes}), tmp_path, CPU, dry_run=True)
        assert ("warning    64 images cannot fill 65 prototypes" in summary.describe(some)) == warned


def test_a_run_that_sees_too_few_images_to_beat_random_weights_is_warned_of_unless_it_starts_from_others(
    wanted, tmp_path
):
    for epochs, init, warned in ((124, None, True), (125, None, False), (124, "some/weights", False)):
        few = wanted.model_copy(update={"epochs": epochs, "batch": 64, "prototypes": 8})
        run = setup.prepare(few, tmp_path, CPU, dry_run=True)
        run.recipe = run.recipe.model_copy(update={"init": init})
        assert ("warning    7,936 images will be seen: with fewer than 8,000" in summary.describe(run)) == warned


@pytest.mark.parametrize(
    ("at_a_time", "words"), [(1, "one image"), (2, "micro_batch=1,"), (9, "micro_batch=3,"), (64, "micro_batch=32,")]
)
def test_the_advice_on_memory_names_a_micro_batch_that_would_be_accepted_and_smaller(at_a_time, words):
    advice = summary.memory_advice(at_a_time)
    assert words in advice and ("micro_batch" in advice) == (at_a_time > 1)


def test_every_choice_is_told_as_it_would_be_typed(wanted, tmp_path):
    said = summary.describe(setup.prepare(wanted, tmp_path, CPU, dry_run=True))
    assert "auto       crops = [{count: 2, size: 32, scale: [0.2, 1]}]: short side of the images: 32 pixels" in said
    assert "auto       batch = 16: " in said


def test_a_half_to_score_that_is_a_link_to_the_training_half_is_refused_and_not_passed_over(shapes, wanted, tmp_path):
    (tmp_path / "train").symlink_to(shapes / "train")
    (tmp_path / "val").symlink_to(tmp_path / "train")
    linked = wanted.model_copy(update={"data": str(tmp_path), "knn_every_epochs": 1})
    with pytest.raises(DataError, match=r"train: expected other images .*val \(a link\)"):
        setup.prepare(linked, tmp_path / "out", CPU, dry_run=True)


def test_the_verdict_knows_when_the_queue_joins(shapes, tmp_path):
    """64 images: 4 steps an epoch. A queue of 32 begins with epoch 2 and is full after two steps; one more epoch may pass."""
    wanted = load_recipe(
        "tiny", {"data": str(shapes), "batch": 16, "queue_length": 32, "queue_start_epoch": 2, "epochs": 9}
    )
    run = setup.prepare(wanted, tmp_path, CPU, dry_run=True)
    assert run.health_facts.unsettled == (10, 14)
    without = setup.prepare(wanted.model_copy(update={"queue_length": 0}), tmp_path, CPU, dry_run=True)
    assert without.health_facts.unsettled == (0, 0)
