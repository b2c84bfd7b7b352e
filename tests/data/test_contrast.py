"""Attacks: folders of images that show nothing, of which nothing is said; wrong advice; photographs that are called one colour.

Run: pytest tests/data/test_contrast.py
"""

import json

import cv2
import numpy as np
import pytest
from PIL import Image

from swav.config import Recipe, settings_hash
from swav.data import sample
from swav.data.contrast import findings, look_at
from swav.data.sample import faults
from swav.data.scan import render_scan, scan
from swav.data.sources.open import open_images
from swav.data.sources.pixels import AS_STORED, Decoding
from tests.data.sources.test_decode import smooth
from tests.data.sources.test_pixels import bmp_with_alpha

GREY = smooth(40, 60)[..., 0].astype(np.int32)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60), dtype=np.uint8)


def saved(folder, *pictures, ending="png"):
    folder.mkdir(exist_ok=True)
    for i, picture in enumerate(pictures):
        (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(folder / f"{i:02d}.{ending}")
    return open_images(folder)


def with_alpha(alpha):
    image = Image.fromarray(smooth(40, 60)).convert("RGBA")
    image.putalpha(Image.fromarray(alpha) if isinstance(alpha, np.ndarray) else alpha)
    return image


def only(images):
    (finding,) = faults(images)
    return finding


@pytest.mark.parametrize("bits, level", [(9, 511), (12, 4095), (14, 16383)])
def test_fewer_bits_than_sixteen_are_found_with_the_level_to_set_and_are_well_with_it(tmp_path, bits, level):
    images = saved(tmp_path, *(np.minimum(GREY * 2 ** (bits - 8) + i, level).astype(np.uint16) for i in range(3)))
    finding = only(images)
    assert finding.setting == {"white_level": level} and finding[:3] == ("white_level", 3, 3)
    assert f"set white_level={level}" in finding.text and "3 of 3 images looked at" in finding.text
    assert faults(images.decoded(Decoding(level))) == []
    assert ("nearly one colour" in finding.text) == (bits < 13)


def test_the_level_is_that_of_the_brightest_image(tmp_path):
    images = saved(tmp_path, *(np.uint16(GREY * scale) for scale in (4, 15, 2)))
    assert only(images).setting == {"white_level": 4095}


def test_a_hot_pixel_does_not_hide_the_bits_that_are_used(tmp_path):
    values = np.tile(GREY * 16, (8, 8)).astype(np.uint16)
    values[3, 5] = 65535
    assert only(saved(tmp_path, values)).setting == {"white_level": 4095}


def test_a_level_that_is_too_low_is_found_too(tmp_path):
    images = saved(tmp_path, np.uint16(GREY * 16 + 300)).decoded(Decoding(255))
    assert only(images).setting == {"white_level": 8191 if GREY.max() * 16 + 300 > 4095 else 4095}


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_colours_of_twelve_bits_are_found(tmp_path, kind):
    (tmp_path / f"a{kind}").write_bytes(cv2.imencode(kind, smooth(40, 60).astype(np.uint16) * 16)[1].tobytes())
    assert only(open_images(tmp_path)).setting == {"white_level": 4095}


def test_thirty_two_bits_are_found(tmp_path):
    assert only(saved(tmp_path / "few", GREY * 16, ending="tif")).setting == {"white_level": 4095}
    finding = only(saved(tmp_path / "many", GREY * 1000, ending="tif"))
    assert finding.cause == "unreadable" and "set white_level=262143" in finding.text


def test_blank_images_get_no_level(tmp_path):
    images = saved(tmp_path, *(np.full((40, 60), value, np.uint16) for value in (0, 0, 5)))
    finding = only(images)
    assert finding.cause == "unknown" and not finding.setting and "00.png" in finding.text


@pytest.mark.parametrize("alpha", [0, 2])
def test_pictures_that_alpha_hides_are_found_and_are_well_without_it(tmp_path, alpha):
    images = saved(tmp_path, with_alpha(alpha))
    assert only(images).cause == "alpha" and only(images).setting == {"alpha": "ignore"}
    assert faults(images.decoded(Decoding(alpha="ignore"))) == []


def test_a_bmp_of_unused_alpha_is_found(tmp_path):
    (tmp_path / "a.bmp").write_bytes(bmp_with_alpha(smooth(40, 60), 0))
    assert only(open_images(tmp_path)).setting == {"alpha": "ignore"}


def test_a_band_in_the_place_of_alpha_is_found_and_true_transparency_is_not(tmp_path):
    finding = only(saved(tmp_path / "band", with_alpha(NOISE)))
    assert finding.cause == "alpha_values" and finding.setting == {"alpha": "ignore"}
    sticker = np.where(NOISE > 128, 255, 0).astype(np.uint8)
    assert faults(saved(tmp_path / "sticker", with_alpha(sticker), with_alpha(255))) == []


def test_jpegs_of_one_colour_are_named_without_a_setting(tmp_path):
    images = saved(tmp_path, *[np.full((40, 60, 3), 200, np.uint8)] * 2, smooth(40, 60), ending="jpg")
    finding = only(images)
    assert finding[:3] == ("unknown", 2, 3) and not finding.setting and "mean 200 of 255" in finding.text


def test_a_few_of_many_are_not_warned_of_at_a_start_and_are_listed_by_a_scan(tmp_path):
    images = saved(tmp_path, *[smooth(40, 60)] * 10, np.zeros((40, 60, 3), np.uint8))
    assert faults(images) == []
    assert [finding["images"] for finding in scan(tmp_path)["faults"]] == [1]


@pytest.mark.parametrize(("flat", "whole", "most"), [(5, 5, False), (6, 5, True)])
def test_a_finding_is_of_most_images_only_where_more_than_half_are_flat(tmp_path, flat, whole, most):
    saved(tmp_path, *[np.zeros((40, 60, 3), np.uint8)] * flat, *[smooth(40, 60)] * whole)
    (finding,) = faults(open_images(tmp_path))
    assert finding.is_of_most == most


def test_dark_images_that_show_something_are_not_called_flat(tmp_path):
    (finding,) = faults(saved(tmp_path, np.uint16(GREY * 60)))
    assert finding.cause == "white_level" and not finding.is_of_most


def test_others_that_use_all_of_their_bits_are_mentioned(tmp_path):
    images = saved(tmp_path, np.uint16(GREY * 16), np.uint16(GREY * 257))
    assert "the 1 others have more than 8 bits" in only(images).text


def test_a_scan_says_it_with_the_numbers_of_all_and_is_silent_with_the_setting(tmp_path):
    saved(tmp_path, *[np.uint16(GREY * 16)] * 40)
    found = json.loads(json.dumps(scan(tmp_path)))
    (fault,) = found["faults"]
    assert (fault["images"], fault["of"], fault["setting"]) == (40, 40, {"white_level": 4095})
    assert "  warning     40 of 40 images are nearly one colour" in render_scan(found)
    assert scan(tmp_path, how=Decoding(4095))["faults"] == []


def test_a_scan_reads_alpha_of_a_sample_only(tmp_path, monkeypatch):
    saved(tmp_path, *[with_alpha(NOISE)] * 6)
    monkeypatch.setattr(sample, "SAMPLE", 2)
    assert [fault["images"] for fault in scan(tmp_path)["faults"]] == [2]


def test_no_photograph_is_called_one_colour(data_root):
    images = open_images(data_root / "photos")
    assert [look_at(images, i).cause for i in range(len(images))] == [None] * len(images)


def test_findings_of_nothing_are_none():
    assert findings([], AS_STORED) == []


def test_settings_at_their_defaults_leave_the_identity_of_runs_that_are_there():
    base = Recipe(data="x")
    assert settings_hash(base) == settings_hash(base.model_copy(update={"white_level": 65535, "alpha": "blend"}))
    for change in ({"white_level": 4095}, {"alpha": "ignore"}):
        assert settings_hash(base.model_copy(update=change)) != settings_hash(base)
