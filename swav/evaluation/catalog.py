"""Every benchmark: its settings, what protocol smoke changes, and the module of its protocol. One more is one more entry.

No torch here: names, help and errors about settings are answered from it. The data set and the published sizes are those of
the settings; units of the metrics are in results/units.py.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from swav.evaluation.settings import (
    BenchSettings,
    Inat18Settings,
    KnnOwnSettings,
    KnnSettings,
    LinearOwnSettings,
    LinearSettings,
    LowshotSettings,
    Places205Settings,
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
        smoke: settings that protocol smoke changes: at most 5 minutes on two cores, with a ResNet-18.
        distributed: whether several processes run it together; else the first runs it while the others wait.
        own: its protocol own, or None where it has none.
    """

    module: str
    settings: type[BenchSettings]
    smoke: Mapping[str, Any]
    distributed: bool
    own: Own | None = None

    def module_of(self, protocol: str) -> str:
        """The module of a protocol."""
        return self.own.module if protocol == "own" and self.own else self.module

    def settings_of(self, protocol: str) -> type[BenchSettings]:
        """The settings of a protocol."""
        return self.own.settings if protocol == "own" and self.own else self.settings

    def is_distributed(self, protocol: str) -> bool:
        """Whether several processes run a protocol together."""
        return self.distributed and protocol != "own"


_STAGES = {"size": 64, "train_images": 2000, "score_images": 1000, "batch": 64}

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
        {"size": 64, "train_images": 5000, "score_images": 1000, "epochs": 8},
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
        {"size": 64, "train_images": 5000, "score_images": 1000, "batch": 32},
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
}
