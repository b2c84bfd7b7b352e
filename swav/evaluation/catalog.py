"""Every benchmark: its settings, what protocol smoke changes, and the module of its protocol. One more is one more entry.

No torch here: names, help and errors about settings are answered from it. The data set and the published sizes are those of
the settings; units of the metrics are in results/units.py.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from swav.config import Auto
from swav.errors import ConfigError, did_you_mean, printable
from swav.evaluation.dense_settings import (
    DetectCocoSettings,
    DetectVocMocoSettings,
    DetectVocSettings,
    DetectVocSwavSettings,
    SegmentCityscapesSettings,
    SegmentLinearSettings,
    SegmentVocSettings,
)
from swav.evaluation.settings import (
    BenchSettings,
    Inat18Settings,
    KnnOwnSettings,
    KnnSettings,
    LinearOwnSettings,
    LinearSettings,
    LowshotSettings,
    Places205Settings,
    Protocol,
    SemisupSettings,
    StagesSettings,
    SvmSettings,
)


@dataclasses.dataclass(frozen=True)
class Own:
    """Protocol own of a benchmark, where it has one: quick, on frozen features, for labels of one's own. One process runs it.

    Attributes:
        module, settings: as of Benchmark.
    """

    module: str
    settings: type[BenchSettings]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One benchmark.

    Attributes:
        module: of its protocol, with the functions `check(task)`, which validates settings and data before any computation,
            `run(task)`, which returns its scores, and `estimate_resources(task)`, for --dry-run.
        settings: of protocol published; they name the data set and the published sizes.
        smoke: settings that protocol smoke changes: at most 5 minutes on two cores, of classification with a ResNet-50, of the
            others with a ResNet-18.
        distributed: whether several processes run it together; else the first runs it while the others wait.
        own: its protocol own, or None where it has none; where it has a protocol published too, the number of classes decides.
        published: whether it has a protocol published; where not, it is run by protocol own unless another one is asked for.
        variants: settings of other published protocols of its own, by their names.
    """

    module: str
    settings: type[BenchSettings]
    smoke: Mapping[str, Any]
    distributed: bool
    own: Own | None = None
    published: bool = True
    variants: Mapping[str, type[BenchSettings]] = dataclasses.field(default_factory=dict)

    def has(self, protocol: str) -> bool:
        """Whether it has a protocol."""
        always = {"own": self.own is not None, "published": self.published, "smoke": True}
        return always.get(protocol, protocol in self.variants)

    def protocols_for(self, asked: Protocol | Auto) -> tuple[Protocol, ...]:
        """The protocols that it may be run by, where one is asked for of several benchmarks, or none (auto).

        Several where the data decide: published for data of the published number of classes, own for others.
        """
        if asked != "auto" and self.has(asked):
            return (asked,)
        if asked == "auto" and self.published and self.own:
            return "published", "own"
        return ("published",) if self.published else ("own",)

    def module_of(self, protocol: str) -> str:
        """The module of a protocol."""
        return self.own.module if protocol == "own" and self.own else self.module

    def settings_of(self, protocol: str) -> type[BenchSettings]:
        """The settings of a protocol."""
        if protocol == "own" and self.own:
            return self.own.settings
        return self.variants.get(protocol, self.settings)

    def is_distributed(self, protocol: str) -> bool:
        """Whether several processes run a protocol together."""
        return self.distributed and protocol != "own"


_STAGES = {"size": 64, "train_images": 2000, "score_images": 1000, "batch": 64}
_SEGMENT = {"batch": 8, "iterations": 150, "channels": 64}
_DETECT = {
    "size": 160,
    "sides": (128, 160),
    "long": 256,
    "batch": 4,
    "iterations": 100,
    "rois": 16,
    "proposals": (100, 50),
}

CATALOG: dict[str, Benchmark] = {
    "knn": Benchmark(
        "swav.evaluation.protocols.knn",
        KnnSettings,
        {"size": 112, "train_images": 5000, "score_images": 1000},
        distributed=False,
        own=Own("swav.evaluation.protocols.knn_own", KnnOwnSettings),
    ),
    "linear": Benchmark(
        "swav.evaluation.protocols.linear",
        LinearSettings,
        {"size": 64, "train_images": 2000, "score_images": 1000, "epochs": 8},
        distributed=True,
        own=Own("swav.evaluation.protocols.linear_own", LinearOwnSettings),
    ),
    "linear-stages": Benchmark(
        "swav.evaluation.protocols.linear_stages",
        StagesSettings,
        {**_STAGES, "epochs": 6, "steps": (3, 5)},
        distributed=True,
    ),
    "places205": Benchmark(
        "swav.evaluation.protocols.places205",
        Places205Settings,
        {**_STAGES, "epochs": 4, "steps": (2, 3)},
        distributed=True,
    ),
    "inat18": Benchmark(
        "swav.evaluation.protocols.inat18",
        Inat18Settings,
        {**_STAGES, "epochs": 4, "steps": (2, 3)},
        distributed=True,
    ),
    "semisup": Benchmark(
        "swav.evaluation.protocols.semisup",
        SemisupSettings,
        {"size": 64, "train_images": 2000, "score_images": 1000, "batch": 32},
        distributed=True,
    ),
    "svm": Benchmark(
        "swav.evaluation.protocols.voc_svm",
        SvmSettings,
        {"size": 112, "train_images": 2000, "score_images": 2000},
        distributed=False,
    ),
    "lowshot": Benchmark(
        "swav.evaluation.protocols.voc_lowshot",
        LowshotSettings,
        {"size": 112, "train_images": 2000, "score_images": 2000, "k": (1, 2, 4, 8, 16)},
        distributed=False,
    ),
    "detect-voc": Benchmark(
        "swav.evaluation.protocols.detect_voc",
        DetectVocSettings,
        {**_DETECT, "score_images": 40},
        distributed=True,
        variants={"moco": DetectVocMocoSettings, "swav": DetectVocSwavSettings},
    ),
    "detect-coco": Benchmark(
        "swav.evaluation.protocols.detect_coco", DetectCocoSettings, {**_DETECT, "score_images": 40}, distributed=True
    ),
    "segment-voc": Benchmark(
        "swav.evaluation.protocols.segment_voc",
        SegmentVocSettings,
        {"size": 96, "scale": (384, 96), **_SEGMENT, "score_images": 100},
        distributed=True,
    ),
    "segment-cityscapes": Benchmark(
        "swav.evaluation.protocols.segment_cityscapes",
        SegmentCityscapesSettings,
        {"size": 96, "scale": (256, 128), **_SEGMENT, "score_images": 60},
        distributed=True,
    ),
    "segment-linear": Benchmark(
        "swav.evaluation.protocols.segment_linear",
        SegmentLinearSettings,
        {"size": 96, "iterations": 100, "score_images": 100},
        distributed=False,
        own=Own("swav.evaluation.protocols.segment_linear", SegmentLinearSettings),
        published=False,
    ),
}


def unknown(names: Iterable[str]) -> list[tuple[str, ConfigError]]:
    """The names that are no benchmark's, each with an error that proposes the nearest known one."""
    known = [*CATALOG, "all"]
    return [
        (
            name,
            ConfigError(f"unknown benchmark '{printable(name)}'{did_you_mean(name, known)}; known: {', '.join(known)}"),
        )
        for name in dict.fromkeys(names)
        if name not in known
    ]


def require_known(names: Iterable[str]) -> None:
    """Refuse names of which one is no benchmark's.

    Raises:
        ConfigError: with the nearest known one.
    """
    for _, error in unknown(names):
        raise error
