"""Which data set a benchmark reads, and where it lies: `--data ROOT` is one itself, or a folder that holds them by their
usual names (imagenet/, VOCdevkit/, Places205/, iNaturalist2018/, coco/, cityscapes/).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from swav.data.images import Images
from swav.data.overlap import refuse_shared
from swav.data.sources import coco, label_maps, lists, voc, voc_objects
from swav.data.sources.layouts import NAMES, find_layout
from swav.data.sources.open import check_images, labelled_splits
from swav.data.sources.walk import TRAIN_SPLITS, first_of, subfolders
from swav.errors import DataError, printable

Splits = tuple[Images, Images]  # to learn from, to score

LABELLED_HOMES = ("imagenet", "imagenette")  # below a folder of data sets, the first that has train/
# Folders by which a folder of data sets, or another data set, is known: none of them is a class of images.
NOT_CLASSES = (
    *("VOCdevkit", "VOC2007", "VOC2012", "coco", "cityscapes", "Places205", "iNaturalist2018"),
    *("ImageSets", "annotations", "leftImg8bit", "gtFine", "train2017", "trainvalsplit_places205", "train_val2018"),
)


class DataSet(NamedTuple):
    """One that benchmarks read.

    Attributes:
        find: opens both splits of it, at ROOT or below, with DataError where there is none; further given the cache folder
            (None: the user's), and whether listed images may be missing.
        expected: what is expected where, and how to get it.
        seek: raises DataError where it is not at ROOT or below; quick, as it looks at no image.
        find_undivided: as `find`, but a set that has no split of its own for scoring is not divided: both splits are one object,
            of all its images. None where every such set has splits.
    """

    find: Callable[[Path, Path | None, bool], Splits]
    expected: str
    seek: Callable[[Path], object]
    find_undivided: Callable[[Path, Path | None], Splits] | None = None


def labelled(root: Path, cache: Path | None = None, allow_missing: bool = False, divide: bool = True) -> Splits:
    """Return both splits of ImageNet, or of any other labelled set: folders, a CSV, CIFAR, or ImageNet's flat val/ with lists.

    Args:
        divide: see labelled_splits.

    Raises:
        DataError: there is none, its splits differ in their classes, or ROOT holds other data sets only.
    """
    root = root.expanduser()
    places = [root, *(root / name for name in LABELLED_HOMES)]
    home = next((place for place in places if first_of(TRAIN_SPLITS, subfolders(place))), root)
    layout = find_layout(home)
    others = [name for name in NOT_CLASSES if home == root and (root / name).is_dir()]
    if others and (not layout.val or layout.kind in NAMES):
        raise DataError(
            f"{printable(str(root))}: expected a labelled data set there, or imagenet/ with train/ and val/ below it, found "
            f"other data sets only ({', '.join(others)})\n{DATASETS['labelled'].expected}"
        )
    return labelled_splits(layout, cache, divide=divide, allow_missing=allow_missing)


def undivided(root: Path, cache: Path | None = None) -> Splits:
    """As labelled; of a set without a split for scoring all images, as one object in both places."""
    return labelled(root, cache, divide=False)


def require_disjoint(splits: Splits) -> Splits:
    """The splits, which have no image in common. (Of a set that is not divided labelled_splits has refused doubles.)

    Raises:
        SharedImages: there is one, by its path.
    """
    if splits[0] is not splits[1]:
        refuse_shared(*splits)
    return splits


def as_pillow(splits: Splits) -> Splits:
    """The splits, of which damaged images are read as far as Pillow does, as the published protocols do, and are noted."""
    train = splits[0].reading_as_pillow()
    return train, train if splits[0] is splits[1] else splits[1].reading_as_pillow()


DATASETS: dict[str, DataSet] = {
    "labelled": DataSet(
        labelled,
        "a labelled data set under --data: train/CLASS/ beside val/CLASS/ (or test/, or a flat val/ with meta/train.txt and "
        "meta/val.txt), class folders, a CSV path,label[,split], or CIFAR; or imagenet/ with train/ and val/ below it",
        check_images,
        undivided,
    ),
    "voc07": DataSet(
        voc.classification_splits, f"PASCAL VOC 2007 as VOCdevkit/VOC2007 under --data: {voc.HOW}", voc.find_home
    ),
    "places205": DataSet(
        lists.places205_splits,
        f"Places205 as Places205/ under --data: {lists.HOW_PLACES205}",
        lists.find_places205,
    ),
    "inat18": DataSet(
        lists.inat18_splits,
        f"iNaturalist 2018 as iNaturalist2018/ under --data: {lists.HOW_INAT18}",
        lists.find_inat18,
    ),
    "voc0712": DataSet(
        voc_objects.detection_splits,
        f"PASCAL VOC 2007 and 2012 as VOCdevkit/VOC2007 and VOCdevkit/VOC2012 under --data: {voc_objects.HOW}",
        voc.find_home,
    ),
    "coco": DataSet(coco.detection_splits, f"COCO 2017 as coco/ under --data: {coco.HOW}", coco.find_home),
    "voc12aug": DataSet(
        label_maps.voc12aug_splits,
        f"PASCAL VOC 2012 as VOCdevkit/VOC2012 under --data, with SBD's maps: {label_maps.HOW_VOC12AUG}",
        label_maps.find_voc12,
    ),
    "cityscapes": DataSet(
        label_maps.cityscapes_splits,
        f"Cityscapes as cityscapes/ under --data: {label_maps.HOW_CITYSCAPES}",
        label_maps.find_cityscapes,
    ),
    "segmented": DataSet(
        label_maps.segmented_splits,
        "images with the class of every pixel under --data: images/ and masks/ (PNGs of one index per pixel, of the same names), "
        "train/ and val/ above or below these; or VOCdevkit/VOC2012 with SegmentationClass/ or SegmentationClassAug/",
        label_maps.find_segmented,
    ),
}
