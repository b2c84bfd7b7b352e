"""A queue of short pre-training runs, one factor at a time: what helps, on several data sets at once.

Run: python benchmarks/search.py QUEUE.toml --data FOLDER --work FOLDER --out benchmarks/results/search.jsonl

QUEUE.toml names data sets (folders below --data), a budget in images seen and variants (settings of `swav pretrain auto`). Each
run is pre-trained, then scored by kNN (k=20, at the network's own evaluation size) beside random weights of the same network.
A line of --out per finished run; a line that is there is not made again, and a run that was killed resumes. Budgets are images
seen, so a busy machine changes no result, only the seconds. `--prepare` makes the data sets from the shared small ones.
"""

import argparse
import itertools
import json
import platform
import time
import tomllib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from swav.data.images import open_images
from swav.evaluation.suite import bench
from swav.train import pretrain

K = 20


def runs(queue: dict[str, Any]) -> list[dict[str, Any]]:
    """Every run of a queue, in its order: all variants and sets of the first seed come before the second seed."""
    return [
        {"set": name, "variant": variant, "settings": queue["variants"][variant], "images": budget, "seed": seed}
        for stage in queue["stages"]
        for budget in [stage["images"]]
        for seed, variant, name in itertools.product(stage["seeds"], stage["variants"], stage["sets"])
    ]


def key(run: dict[str, Any]) -> str:
    return f"{run['set']}-{run['variant']}-{run['images']}-{run['seed']}"


def made(run: dict[str, Any], data: Path, work: Path) -> dict[str, Any]:
    """Pre-train and score one run."""
    folder, source = work / key(run), data / run["set"]
    epochs = max(1, round(run["images"] / len(open_images(source))))
    fixed = {"data": str(source), "epochs": epochs, "seed": run["seed"], "workers": 0, "knn_epochs": 0, "device": "cpu"}
    began = time.monotonic()
    pretrain("auto", folder, **fixed, **run["settings"])
    seconds = time.monotonic() - began
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    weights = {"random": f"random:{folder}", "trained": str(folder)}
    options = {"protocol": "smoke", "knn.k": [K], "knn.workers": 0, "train_images": 0, "score_images": 0}
    size = json.loads((folder / "checkpoints").glob("step_*").__next__().joinpath("state.json").read_text())["recipe"]
    options["size"] = size["eval_size"] if isinstance(size["eval_size"], int) else max(c["size"] for c in size["crops"])
    found = bench(["knn"], list(weights.values()), source, folder / "bench", options)["results"]
    scores = {row["weights"]: row["value"] for row in found if row["metric"] == f"top-1 k={K}"}
    return run | {
        "epochs": epochs,
        **{name: scores[source] for name, source in weights.items()},
        "rankme": last["rankme"],
        "loss_gap": last["loss_gap"],
        "prototypes_used": last["prototypes_used"],
        "seconds": round(seconds),
        "date": time.strftime("%Y-%m-%d"),
        "machine": platform.processor() or platform.machine(),
    }


def prepare(shared: Path, data: Path) -> None:
    """Make the four sets: CIFAR-10 (20,000 + 5,000 drawn), Imagenette at 64 pixels, object crops of VOC and COCO, shapes."""
    import numpy as np

    from swav.data.images import labelled_halves
    from swav.data.layouts import write_shapes

    write_shapes(data / "shapes", "imagenet", train=2000, val=500, size=64, seed=0)
    for half, images, count in zip(("train", "val"), labelled_halves(shared / "cifar10"), (20_000, 5_000), strict=True):
        assert images.labels is not None and images.classes is not None
        for i in np.sort(np.random.default_rng(0).permutation(len(images))[:count]):
            path = data / "cifar20k" / half / images.classes[images.labels[i]] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.read(i)).save(path)
    for path in sorted((shared / "imagenette").glob("*/*/*.JPEG")):
        small = data / "imagenette64" / path.relative_to(shared / "imagenette").with_suffix(".png")
        small.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC).save(small)
    _objects(shared, data / "objects")


def _objects(shared: Path, folder: Path) -> None:
    """One crop per box of at least 32 pixels, with its class as label; classes of fewer than 10 are left out."""
    import xml.etree.ElementTree as ElementTree
    from collections import Counter

    boxes: list[tuple[Path, str, tuple[float, ...]]] = []
    for voc in sorted(shared.glob("voc*/VOCdevkit/VOC20*")):
        for note in sorted((voc / "Annotations").glob("[!.]*.xml")):
            for item in ElementTree.parse(note).getroot().iter("object"):
                box = item.find("bndbox")
                if box is not None and item.findtext("difficult") != "1":
                    corners = tuple(float(box.findtext(side, "0")) for side in ("xmin", "ymin", "xmax", "ymax"))
                    boxes.append((voc / "JPEGImages" / f"{note.stem}.jpg", item.findtext("name", ""), corners))
    for part in ("train2017", "val2017"):
        for notes in sorted((shared / "coco_tiny" / "annotations").glob(f"instances_{part}*.json")):
            content = json.loads(notes.read_text())
            names = {one["id"]: one["name"] for one in content["categories"]}
            files = {one["id"]: one["file_name"] for one in content["images"]}
            for one in content["annotations"]:
                x, y, w, h = one["bbox"]
                if not one.get("iscrowd"):
                    where = shared / "coco_tiny" / part / files[one["image_id"]]
                    boxes.append((where, names[one["category_id"]], (x, y, x + w, y + h)))
    same = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
    }
    same |= {"sofa": "couch", "tvmonitor": "tv"}
    boxes = [
        (path, same.get(name, name), box) for path, name, box in boxes if min(box[2] - box[0], box[3] - box[1]) >= 32
    ]
    counts = Counter(name for _, name, _ in boxes)
    for number, (path, name, box) in enumerate(boxes):
        if counts[name] >= 10 and path.is_file():
            place = folder / name / f"{number:05d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            crop = Image.open(path).convert("RGB").crop(tuple(round(value) for value in box))
            crop.resize((64, 64), Image.Resampling.BICUBIC).save(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queue", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="run folders")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prepare", type=Path, metavar="SHARED", help="make the data sets first")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.prepare:
        prepare(arguments.prepare, arguments.data)
    while True:  # the queue may grow while it is worked through
        lines = arguments.out.read_text(encoding="utf-8").splitlines() if arguments.out.exists() else []
        done = {key(json.loads(line)) for line in lines}
        waiting = [run for run in runs(tomllib.loads(arguments.queue.read_text())) if key(run) not in done]
        if not waiting:
            return
        line = json.dumps(made(waiting[0], arguments.data, arguments.work))
        with arguments.out.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        print(f"{len(waiting) - 1} left  {line}", flush=True)


if __name__ == "__main__":
    main()
