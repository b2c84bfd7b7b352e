"""Results of every kind that the tables show. tests/results/stored/ has what was written of them before results were typed."""

from typing import Any

OURS = {"backbone": "resnet50", "width": 1.0, "stem": "imagenet", "seed": 0, "epochs": 200, "batch": 256}
VIT = {"backbone": "timm:vit_small_patch16_224", "width": 1.0, "channels": "bgr"}
SMOKE = "protocol smoke; 10 classes instead of 1,000"


def row(bench: str, metric: str, value: float, weights: str = "runs/a", **changed: Any) -> dict[str, Any]:
    """The fields of one result; `log` is relative to its folder."""
    network = VIT if weights.startswith("timm:") else OURS
    of = {"random:runs/a": "cd" * 32, "timm:vit": "ef" * 32}
    fields = {
        "bench": bench,
        "metric": metric,
        "value": value,
        "unit": "%",
        "n": 50_000,
        "protocol": "published",
        "comparable": True,
        "difference": "",
        "seed": 0,
        "weights": weights,
        "weights_sha256": of.get(weights, "ab" * 32),
        "versions": {"swav": "0.1.0", "torch": "2.11.0"},
        "config": {
            "size": 224,
            "k": [10, 20],
            "data": ["imagenet/train", "imagenet/val"],
            "network": network,
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "log": None,
        "name": {"runs/a": "Ours | fast"}.get(weights, weights),
    }
    return fields | changed


def smoke(*of: Any, **changed: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {"protocol": "smoke", "comparable": False, "difference": SMOKE, "n": 300}
    return row(*of, **fields | changed)


FIRST = [
    *(row("knn", f"top-1 k={k}", value) for k, value in ((10, 60.53), (20, 60.61), (5, 59.0))),
    *(row("knn", f"top-1 k={k}", value, "random:runs/a") for k, value in ((10, 1.25), (20, 1.5))),
    *(smoke("linear", "top-1", value, seed=seed) for seed, value in enumerate((70.125, 71.5, 69.0))),
    smoke("linear", "top-1", 12.5, "random:runs/a"),
    smoke("linear", "top-1", 55.0, difference="protocol smoke; 9 epochs instead of 100", seed=7),
    *(row("svm", f"mAP feature{i}", 20.0 * i - i * i, n=4952, log="svm/log.json") for i in range(1, 6)),
    row("svm", "mAP best layer", 75.0, n=4952, log="svm/log.json"),
    *(row("lowshot", f"mAP k={k}", 40.0 + k, n=4952) for k in (1, 2)),
    *(row("lowshot", f"spread k={k}", 1.0 / k, n=4952) for k in (1, 2)),
    *(row("linear-stages", f"top-1 feature{i} (blocks.{2 * i})", 10.0 * i, "timm:vit") for i in range(1, 7)),
    *(row("semisup", f"top-1 {share}", 53.9, seed=seed) for share in ("1%", "100%") for seed in (0, 1)),
    row("inat18", "top-1 feature5", 48.6, n=24_426),
]
NOT_RUN = [
    {"bench": "places205", "reason": "no list", "expected": "the lists"},
    {"bench": "lowshot", "reason": "few", "expected": "more training images", "metric": "mAP k=96"},
    {"bench": "svm", "reason": "no stages", "expected": "a trunk with stages", "weights": "timm:vit"},
]
SECOND = [
    row("knn", "top-1 k=10", 61.0, n=49_999, comparable=False, difference="49,999 scored images instead of 50,000"),
    row("places205", "top-1 feature5", 55.0, n=20_500),
    smoke("linear", "top-1", 80.0, "random:runs/a", name="chance"),
]
