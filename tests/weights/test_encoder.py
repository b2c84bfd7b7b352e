"""Weight sources: what is named is what is loaded, and what is not there is refused with the names that are.

Run: pytest tests/weights/test_encoder.py
"""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from swav import checkpoint
from swav.data.sources.open import open_images
from swav.errors import CheckpointError, ConfigError, DataError
from swav.network.heads import build_network
from swav.recipe_files import load_recipe, to_yaml
from swav.weights.encoder import Encoder, load
from tests.data.pictures import picture
from tests.frozen import pooled_features

RECIPE = load_recipe("tiny", {"width": 0.125, "head_hidden": 16, "head_dim": 8, "prototypes": 12})


# of images for five steps an epoch
STATE = {"recipe": RECIPE.model_dump(mode="json"), "world_size": 1, "num_images": 5 * int(RECIPE.batch) + 1}


@pytest.fixture
def run(tmp_path):
    """A run's folder with two checkpoints, the first of them the best."""
    for step, seed in ((5, 1), (10, 2)):
        network = build_network(RECIPE.model_copy(update={"seed": seed}))
        checkpoint.save(
            tmp_path / "checkpoints",
            step,
            model=network.state_dict(),
            optim={},
            local={},
            state=STATE | {"best_step": 5},
            keep=3,
            best=5,
        )
    (tmp_path / "config.yaml").write_text(to_yaml(RECIPE))
    return tmp_path


def test_random_weights_are_those_of_the_seed_whoever_names_them(run):
    fresh = build_network(RECIPE)
    of_run = load(f"random:{run}")
    assert torch.equal(of_run.get_parameter("trunk.conv1.weight"), fresh.get_parameter("trunk.conv1.weight"))
    assert of_run.sha256 == load(f"random:{run}").sha256
    assert load("random:resnet18").num_features == 512
    assert load("random:cifar10").trunk.conv1.stride == (1, 1)


def test_a_run_means_its_newest_checkpoint_and_best_the_best(run):
    newest, best = load(run), load(f"{run}@best")
    assert newest.sha256 == load(run / "checkpoints" / "step_00000010").sha256
    assert best.sha256 == load(run / "checkpoints" / "step_00000005").sha256
    assert newest.sha256 != best.sha256
    assert [(w.settings["epochs"], w.settings["batch"]) for w in (best, newest)] == [
        (1, RECIPE.batch),
        (2, RECIPE.batch),
    ]
    assert "epochs" not in load(f"random:{run}").settings


@pytest.mark.parametrize("name", ["me@home", "run@best@home", "run@"])
def test_a_path_may_hold_an_at_sign(run, tmp_path_factory, name):
    there = tmp_path_factory.mktemp("at") / name
    shutil.copytree(run, there)
    assert load(there).sha256 == load(run).sha256
    assert load(f"{there}@best").sha256 == load(f"{run}@best").sha256


def test_best_is_of_a_run_that_has_one(run):
    with pytest.raises(ConfigError, match="expected a run folder, found "):
        load(f"{run}/checkpoints/step_00000010@best")
    state = STATE | {"best_step": None}
    model = build_network(RECIPE).state_dict()
    checkpoint.save(run / "checkpoints", 15, model=model, optim={}, local={}, state=state, keep=3)
    with pytest.raises(ConfigError, match="scored while training"):
        load(f"{run}@best")


def test_an_encoder_is_in_eval_mode_without_gradients_and_prototypes_are_unit_vectors(run):
    encoder = load(run)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    torch.testing.assert_close(encoder.get_parameter("prototypes.weight").norm(dim=1), torch.ones(12))
    maps = encoder.stages(torch.zeros(1, 3, 48, 48))
    assert [m.shape[1] for m in maps] == encoder.stage_channels


def test_preprocess_takes_the_centre_and_normalises():
    encoder = load("random:tiny")
    image = np.full((60, 80, 3), 128, np.uint8)
    view = encoder.preprocess(image, 32)
    assert view.shape == (3, 32, 32)
    expected = (128 / 255 - torch.tensor(encoder.mean)) / torch.tensor(encoder.std)
    torch.testing.assert_close(view.mean(dim=(1, 2)), expected)


def test_what_is_not_there_is_refused_with_what_is(run, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'resnet18'"):
        load("random:resnet81")
    with pytest.raises(ConfigError, match="expected a run folder"):
        load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="@best"):
        load(f"{run}@worst")
    (run / "checkpoints" / "step_00000010" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="damaged"):
        load(run / "checkpoints" / "step_00000010")


def test_tensors_of_another_network_are_refused(run):
    path = run / "checkpoints"
    network = build_network(RECIPE.model_copy(update={"backbone": "resnet34"}))
    state = STATE | {"best_step": None}
    checkpoint.save(path, 15, model=network.state_dict(), optim={}, local={}, state=state, keep=3)
    with pytest.raises(CheckpointError, match=r"do not fit: unexpected trunk\.layer1\.2\.bn1"):
        load(run)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("trunk.bn1.running_var", -1e-3, "negative ones in trunk.bn1.running_var"),
        ("prototypes.weight", float("inf"), "infinite or no number in prototypes.weight"),
    ],
)
def test_own_weights_that_give_no_sound_number_are_refused_though_they_verify(run, monkeypatch, name, value, words):
    monkeypatch.setattr(checkpoint, "require_finite", lambda *_: None)  # as older versions saved them
    model = build_network(RECIPE).state_dict()
    model[name].view(-1)[3] = value
    checkpoint.save(run / "checkpoints", 15, model=model, optim={}, local={}, state=STATE, keep=3)
    with pytest.raises(CheckpointError, match=words) as caught:
        load(run)
    assert len(str(caught.value).splitlines()) == 1


def test_the_state_of_a_benchmark_is_no_checkpoint_of_a_run(tmp_path):
    checkpoint.save(tmp_path / "checkpoints", 3, model={}, optim={}, local={}, state={"epoch": 3}, keep=3)
    with pytest.raises(CheckpointError, match=r"of a pre-training run, found another's.*no recipe in state.json"):
        load(tmp_path / "checkpoints/step_00000003")


def test_a_config_of_something_else_is_no_run(tmp_path):
    (tmp_path / "config.yaml").write_text("camera: A\n")
    with pytest.raises(ConfigError, match=r"expected a backbone .* or a run folder"):
        load(f"random:{tmp_path}")


def test_random_weights_may_be_timms_and_grey_ones_take_grey_images():
    encoder = load("random:timm:resnet18")
    assert encoder.num_features == 512 and encoder.stage_names[0] == "act1"
    grey = RECIPE.model_copy(update={"in_channels": 1})
    encoder = Encoder(build_network(grey), grey, "grey")
    view = encoder.preprocess(np.full((60, 80, 3), 128, np.uint8), 32)
    assert view.shape == (1, 32, 32) and encoder(view[None]).shape == (1, 64)


def test_a_network_that_follows_from_images_is_not_guessed():
    with pytest.raises(ConfigError, match="random:auto: its network follows from images"):
        load("random:auto")


def test_preprocess_takes_files_pil_images_and_arrays_and_gives_the_view_of_features(tmp_path):
    encoder = load("random:tiny")
    pixels = picture(60, 80)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    with Image.open(tmp_path / "image.png") as opened:
        given = [tmp_path / "image.png", str(tmp_path / "image.png"), opened, np.asarray(opened), pixels]
        views = [encoder.preprocess(image, 32) for image in given]
    assert all(torch.equal(view, views[0]) for view in views)
    images = open_images(tmp_path, "all")
    computed = pooled_features(encoder, images, 32, workers=0)
    assert torch.equal(encoder(views[0][None]), computed.features)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "I"])
def test_preprocess_takes_a_pil_image_of_any_mode_as_its_file_is_read(tmp_path, mode):
    encoder = load("random:tiny")
    grey = Image.fromarray(picture(60, 80)).convert("L")
    wide = {"I;16": np.uint16, "I": np.int32}  # white is 65535 of both, as in files
    image = Image.fromarray(np.asarray(grey).astype(wide[mode]) * 257) if mode in wide else grey.convert(mode)
    assert image.mode == mode
    view = encoder.preprocess(image, 32)
    rgb = image if mode in ("1", "P") else grey  # their values are other ones
    torch.testing.assert_close(view, encoder.preprocess(np.asarray(rgb.convert("RGB")), 32), atol=0.02, rtol=0)
    ending = "tif" if mode in ("CMYK", "I") else "png"
    image.save(tmp_path / f"image.{ending}")
    assert torch.equal(view, encoder.preprocess(tmp_path / f"image.{ending}", 32))


def test_preprocess_turns_a_pil_image_as_its_exif_says(tmp_path):
    encoder = load("random:tiny")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(60, 80)).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as opened:
        from_pil = encoder.preprocess(opened, 32)
    assert torch.equal(from_pil, encoder.preprocess(tmp_path / "turned.png", 32))
    assert not torch.equal(from_pil, encoder.preprocess(picture(60, 80), 32))


def test_what_preprocess_cannot_read_is_a_data_error(tmp_path):
    encoder = load("random:tiny")
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    for image, words in (
        (tmp_path / "cut.png", r"cut\.png: expected an image, found"),
        (tmp_path / "no.png", r"no\.png: expected an image, found No such file"),
        (Image.new("F", (20, 20)), "image: expected an image, found floating-point pixels"),
    ):
        with pytest.raises(DataError, match=words) as caught:
            encoder.preprocess(image)
        assert len(str(caught.value).splitlines()) == 1
