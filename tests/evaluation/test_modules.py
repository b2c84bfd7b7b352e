"""Attacked: modules in memory that are scored otherwise than the same weights in a file, that are changed by it, that share features with
a module that computes something else, or that are taken though they give no features.

Run: pytest tests/evaluation/test_modules.py
"""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from swav.errors import ConfigError
from swav.evaluation.runner import bench
from swav.results.results import DryRunRow, NotRun
from swav.weights.encoder import load

QUICK: dict[str, Any] = {"size": 16, "workers": 0, "knn": {"k": [1, 5]}}
SAME = (
    "bench",
    "metric",
    "value",
    "unit",
    "n",
    "protocol",
    "comparable",
    "difference",
    "seed",
    "weights_sha256",
    "versions",
)


def facts(content, *fields):
    return [{field: getattr(row, field) for field in fields} for row in content.results]


def settings_of(content):
    return [
        {key: value for key, value in row.config.model_dump().items() if key != "network"} for row in content.results
    ]


class Pooled(nn.Module):
    """A network whose features are told by its attribute, not by its tensors."""

    def __init__(self, pool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 8, 3), pool

    def forward(self, images):
        return self.pool(self.conv(images).flatten(2), dim=2)


@pytest.mark.parametrize("kind", ["encoder", "module"])
def test_the_row_of_a_module_is_that_of_the_same_weights_from_a_file(colours, tmp_path, kind):
    names = ["knn", "linear-stages"]
    quick: dict[str, Any] = QUICK | {"linear_stages": {"epochs": 1, "steps": [], "batch": 8}}
    of_file = bench(names, weights="random:tiny", data=colours, out=tmp_path / "file", **quick)
    encoder = load("random:tiny")
    module = encoder if kind == "encoder" else encoder.trunk
    more: dict[str, Any] = {} if kind == "encoder" else {"mean": encoder.mean, "std": encoder.std}
    content = bench(names, weights=module, name="mine", data=colours, out=tmp_path / "module", **quick, **more)
    assert len(content.results) > 10
    assert {(row.weights, row.name) for row in content.results} == {("mine", "mine")}
    assert facts(content, *SAME) == facts(of_file, *SAME) and settings_of(content) == settings_of(of_file)
    if kind == "encoder":
        assert facts(content, "config") == facts(of_file, "config")
    else:
        assert {row.config.model_dump()["network"]["backbone"] for row in content.results} == {"ResNet"}


def test_a_module_without_a_name_is_refused_in_one_line(colours, tmp_path):
    module = Pooled(torch.amax)
    cases: list[tuple[Any, dict[str, Any]]] = [
        (module, {}),
        ([module, "random:tiny"], {"name": "mine"}),
        ([module, module], {"name": ["mine", "mine"]}),
        (["random:tiny", module], {"name": ["other", "random:tiny"]}),
    ]
    for weights, named in cases:
        with pytest.raises(ConfigError, match=r"^name: expected") as caught:
            bench("knn", weights=weights, data=colours, out=tmp_path / "out", **QUICK, **named)
        assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_modules_stand_beside_sources(colours, tmp_path):
    weights: list[str | Path | nn.Module] = [Pooled(torch.amax), "random:tiny", Path("random:cifar10")]
    content = bench("knn", weights=weights, name=["a", "b", "c"], data=colours, out=tmp_path, **QUICK)
    found = {(row.weights, row.name) for row in content.results}
    assert found == {("a", "a"), ("random:tiny", "b"), ("random:cifar10", "c")}


def test_the_module_is_left_as_it_is(colours, tmp_path):
    module = Pooled(torch.amax).train()
    before = copy.deepcopy(module.state_dict())
    quick: dict[str, Any] = {
        "protocol": "smoke",
        "size": 16,
        "workers": 0,
        "semisup": {"epochs": 1, "fraction": 1.0, "batch": 8},
    }
    bench(["knn", "semisup"], weights=module, name="mine", data=colours, out=tmp_path, **quick, knn={"k": 1})
    assert module.training and all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_features_of_another_computation_by_the_same_tensors_are_not_taken_from_the_cache(colours, tmp_path):
    most = Pooled(torch.amax)
    none = copy.deepcopy(most)
    none.pool = lambda maps, dim: torch.ones_like(maps).mean(dim)
    fresh = [
        bench("knn", weights=m, name="m", data=colours, out=tmp_path / str(i), **QUICK)
        for i, m in enumerate((most, none))
    ]
    shared = [
        bench("knn", weights=m, name="m", data=colours, out=tmp_path / "shared", **QUICK) for m in (most, none, most)
    ]
    values = [facts(content, "metric", "value") for content in (*fresh, *shared)]
    assert values[0] != values[1] and values[2:] == [values[0], values[1], values[0]]
    assert len(list((tmp_path / "shared/features").iterdir())) == 4  # two halves of two modules


def test_the_cache_is_used_again_for_the_same_module(colours, tmp_path, monkeypatch):
    module = Pooled(torch.amax)
    first = bench("knn", weights=module, name="mine", data=colours, out=tmp_path, **QUICK)
    monkeypatch.setattr("swav.feature_store.features_of", None)
    assert bench("knn", weights=copy.deepcopy(module), name="mine", data=colours, out=tmp_path, **QUICK) == first


def test_an_encoder_that_was_changed_is_no_longer_its_file(colours, tmp_path):
    encoder = load("random:tiny")
    with torch.no_grad():
        encoder.get_parameter("trunk.conv1.weight").neg_()
    content = bench("knn", weights=encoder, name="turned", data=colours, out=tmp_path, **QUICK)
    assert {row.weights_sha256 for row in content.results}.isdisjoint({load("random:tiny").sha256})


def scored_together(folder: str, out: str) -> list[tuple[str, float | None]]:
    torch.manual_seed(1)
    module = Pooled(torch.amax)
    quick: dict[str, Any] = {
        "protocol": "published",
        "size": 16,
        "workers": 0,
        "knn": {"k": 1},
        "linear": {"epochs": 2, "batch": 8},
    }
    content = bench(["knn", "linear"], weights=module, name="mine", data=folder, out=out, **quick)
    return [(row.metric, row.value) for row in content.results]


@pytest.mark.slow
def test_two_processes_score_a_module_as_one_does(colours, tmp_path, two_processes):
    alone = scored_together(str(colours), str(tmp_path / "alone"))
    assert two_processes(scored_together, str(colours), str(tmp_path / "both")) == [alone, alone]


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (nn.Conv2d(3, 4, 3), r"found float32 \[2, 4, 14, 14\] of two images"),
        (nn.Sequential(nn.Flatten(), nn.Linear(7, 2)), "it fails .*; check it, or use another size"),
        (Pooled(lambda maps, dim: maps.mean(dim).double()), r"found float64 \[2, 8\]"),
        (Pooled(lambda maps, dim: (maps,)), "found tuple"),
        (Pooled(lambda maps, dim: maps.mean((0, dim))[None]), r"found float32 \[1, 8\]"),
    ],
    ids=range(5),
)
def test_what_gives_no_features_is_refused_before_any_work(colours, tmp_path, module, words):
    with pytest.raises(
        ConfigError, match=rf"mine: expected a module that maps images \[N, 3, 16, 16\].*{words}"
    ) as caught:
        bench("knn", weights=module, name="mine", data=colours, out=tmp_path / "out", **QUICK)
    assert len(str(caught.value).splitlines()) == 1 and not (tmp_path / "out").exists()


def test_benchmarks_of_stages_refuse_a_module_without_and_all_lists_them(colours, tmp_path):
    module = Pooled(torch.amax)
    quick: dict[str, Any] = {
        "size": 16,
        "workers": 0,
        "linear_stages": {"epochs": 1, "steps": []},
        "protocol": "published",
    }
    with pytest.raises(ConfigError, match="mine: expected a backbone with stages for linear-stages, found Pooled"):
        bench("linear-stages", weights=module, name="mine", data=colours, out=tmp_path, **quick)
    content = bench("all", weights=module, name="mine", data=colours, out=tmp_path, dry_run=True, **quick, knn={"k": 1})
    rows = {row.bench: row for row in content.dry_run}
    refused = rows["linear-stages"]
    assert isinstance(refused, NotRun) and "stages" in refused.reason
    assert isinstance(rows["knn"], DryRunRow) and isinstance(rows["linear"], DryRunRow)


@pytest.mark.parametrize(
    ("option", "words"), [({"model": "resnet18"}, "model: .* is a module"), ({"stem": "small"}, "stem: ")]
)
def test_options_of_files_are_refused(colours, tmp_path, option, words):
    with pytest.raises(ConfigError, match=words):
        bench("knn", weights=Pooled(torch.amax), name="mine", data=colours, out=tmp_path, **QUICK, **option)
    with pytest.raises(ConfigError, match=r"mean: is for .*mine is an Encoder"):
        bench(
            "knn", weights=load("random:tiny"), name="mine", data=colours, out=tmp_path, **QUICK, mean=[0.5, 0.5, 0.5]
        )


def test_mean_and_std_of_a_module_reach_its_images(colours, tmp_path):
    module = Pooled(torch.amax)
    given: list[dict[str, Any]] = [{}, {"mean": [0.5, 0.5, 0.5], "std": (0.25, 0.25, 0.25)}]
    rows = [
        bench("knn", weights=module, name="m", data=colours, out=tmp_path / str(i), **QUICK, **more).results[0]
        for i, more in enumerate(given)
    ]
    assert [row.config.mean for row in rows] == [(0.485, 0.456, 0.406), (0.5, 0.5, 0.5)]
    assert [row.config.std for row in rows] == [(0.229, 0.224, 0.225), (0.25, 0.25, 0.25)]
