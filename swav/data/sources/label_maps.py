"""Images with the class of every pixel: PASCAL VOC 2012 with SBD's maps, Cityscapes, or a folder of one's own.

A map is a PNG of one index per pixel, by a palette (whose colours do not matter) or as grey; 255 is void: it does not count. Its
file is never turned, as EXIF may turn an image: whichever way the image has the map's size is the way it is read.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Int16

from swav.data.images import Images
from swav.data.sources.annotated import find_one, read_ids
from swav.data.sources.header_index import THREADS
from swav.data.sources.map_files import UNKNOWN, MapReader, Pair, index_table, map_split
from swav.data.sources.open import SPLIT_SEED, VAL_SHARE
from swav.data.sources.voc_objects import CLASSES
from swav.data.sources.walk import TRAIN_SPLITS, VAL_SPLITS, first_of, subfolders, walk
from swav.data.targets import VOID
from swav.errors import DataError, printable
from swav.files import visible

Splits = tuple[Images, Images]

HOW_VOC12AUG = (
    "unpack VOCtrainval_11-May-2012.tar (host.robots.ox.ac.uk/pascal/VOC/voc2012) there, and beside it SBD's benchmark.tgz as "
    "benchmark_RELEASE/, or SegmentationClassAug/ and aug.txt into VOC2012; or draw a stand-in: swav data shapes "
    "ROOT/VOCdevkit --layout voc0712"
)
HOW_CITYSCAPES = (
    "unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip there (cityscapes-dataset.com), or draw a stand-in: "
    "swav data shapes ROOT/cityscapes --layout cityscapes"
)
HOW_FOLDER = (
    "put the images into images/ and a PNG of one index per pixel of each, of the same name, into masks/; train/ and val/ may be "
    "above or below these; names of the classes, a line each, may be in classes.txt"
)
VOC12_HOMES = ("", "VOC2012", "VOCdevkit/VOC2012", "*/VOCdevkit/VOC2012")
OWN, AUGMENTED = "SegmentationClass", "SegmentationClassAug"  # VOC's maps, and those with SBD's
SBD_HOMES = ("benchmark_RELEASE/dataset", "SBD", "SBD/dataset", "VOCaug/dataset")
CITYSCAPES = (
    *(
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
    ),
    *("sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"),
)
# Cityscapes' ids of its 19 classes, in their order; the others of its 34 ids are void.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
CITYSCAPES_KNOWN = 34
NAMES = "classes.txt"
CHUNK = 256  # maps
MOST_CLASSES = 255  # the index that is left is void


def voc12aug_splits(
    root: str | Path, cache: Path | None = None, allow_missing: bool = False, aug_alone: bool | None = None
) -> Splits:
    """Return (train with SBD's maps, val) of PASCAL VOC 2012. Their targets are LabelMaps, of 21 classes.

    Training images are those of train.txt with VOC's own maps, and SBD's others, with SBD's maps: by aug.txt, by trainaug.txt, or
    as SBD's own lists have them, without VOC's train and val.

    Args:
        root: VOC2012 itself, the VOCdevkit, or a folder that holds it.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out listed images that are not there, or SBD's if all are; the note says so.
        aug_alone: take SegmentationClassAug for VOC's own maps where these are not there; None: as allow_missing.

    Raises:
        DataError: there is no such data set, or a list, an image or a map is missing or contradicts another.
    """
    root = Path(root).expanduser()
    home = find_voc12(root)
    lists = home / "ImageSets" / "Segmentation"
    there = [name for name in ("train", "aug", "trainaug") if (lists / f"{name}.txt").is_file()]
    has_augmented, sbd = (home / AUGMENTED).is_dir(), _find_sbd(root, home)
    own_maps = OWN
    if not (home / OWN).is_dir() and has_augmented and (allow_missing if aug_alone is None else aug_alone):
        own_maps = AUGMENTED
    val = read_ids(lists / "val.txt", HOW_VOC12AUG)
    train, more = [], []  # images with VOC's maps and, besides these, with SBD's
    if own_maps == OWN or "train" in there or "trainaug" not in there:  # else trainaug.txt, which lists both
        train = read_ids(lists / "train.txt", HOW_VOC12AUG)
    if listed := next((name for name in ("aug", "trainaug") if name in there and (train or name == "trainaug")), None):
        more = read_ids(lists / f"{listed}.txt", HOW_VOC12AUG)
    elif sbd is not None:
        more = sorted(set(_sbd_ids(sbd)) - set(val))
    own = set(train)
    more = [image for image in more if image not in own and (has_augmented or sbd is not None)]
    if not more and not allow_missing:
        raise DataError(
            f"{printable(str(home))}: expected SBD's maps in {AUGMENTED}/ with aug.txt or trainaug.txt, or in benchmark_RELEASE/ "
            f"beside it, found none\n{HOW_VOC12AUG}"
        )
    kind = f"{AUGMENTED}/{{}}.png" if has_augmented else "cls/{}.mat"
    note = f"; {len(train)} with VOC's maps, {len(more)} with SBD's"
    if own_maps == AUGMENTED:
        note = f"; all maps from {AUGMENTED}"
    classes = _class_names(home) or ["background", *CLASSES]
    reader = MapReader(home, index_table(len(classes)), sbd=sbd)
    pairs = {
        "train": [(image, f"{own_maps}/{image}.png") for image in train]
        + [(image, kind.format(image)) for image in more],
        "val": [(image, f"{own_maps}/{image}.png") for image in val],
    }
    first, second = (
        map_split(
            split, [(f"JPEGImages/{image}.jpg", name) for image, name in its_own], classes, reader, cache, allow_missing
        )
        for split, its_own in pairs.items()
    )
    first.note += note
    return first, second


def find_voc12(root: str | Path) -> Path:
    """The folder VOC2012 at a path or below; looks at no image.

    Raises:
        DataError: there is none, or more than one.
    """
    what = "PASCAL VOC 2012 there (ImageSets/Segmentation, JPEGImages) or in VOCdevkit/VOC2012 below it"
    return find_one(Path(root).expanduser(), VOC12_HOMES, _is_voc12, what, HOW_VOC12AUG)


def _is_voc12(path: Path) -> bool:
    return (path / "ImageSets" / "Segmentation").is_dir()


def _find_sbd(root: Path, home: Path) -> Path | None:
    """The folder of SBD's cls/ and lists beside VOC2012 or above, as far as the folder that was named."""
    above = [place for place in (home, *home.parents) if place == root or root in place.parents]
    return next((path for place in above for name in SBD_HOMES if ((path := place / name) / "cls").is_dir()), None)


def _sbd_ids(sbd: Path) -> list[str]:
    return [image for split in ("train", "val") for image in read_ids(sbd / f"{split}.txt", HOW_VOC12AUG)]


def cityscapes_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> Splits:
    """Return (train, val) of Cityscapes. Their targets are LabelMaps, of 19 classes.

    Maps are gtFine's *_labelTrainIds.png, or where one is not there *_labelIds.png. A stand-in may name other classes in classes.txt.

    Args:
        root: Cityscapes itself, or a folder that holds it, as cityscapes/ or as the only one.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out images without a map, and say so in the note; else they are an error.

    Raises:
        DataError: there is no such data set, or a split or a map is missing.
    """
    home = find_cityscapes(root)
    classes = _class_names(home) or CITYSCAPES
    reader = MapReader(home, index_table(len(classes)), label_ids=_cityscapes_table())
    train, val = (
        map_split(split, _cityscapes_pairs(home, split), classes, reader, cache, allow_missing)
        for split in ("train", "val")
    )
    return train, val


def find_cityscapes(root: str | Path) -> Path:
    """The folder of Cityscapes at a path or below; looks at no image.

    Raises:
        DataError: there is none, or more than one.
    """
    what = "Cityscapes there or as cityscapes/ below it (leftImg8bit/ and gtFine/)"

    def is_home(path: Path) -> bool:
        return all((path / name).is_dir() for name in ("leftImg8bit", "gtFine"))

    return find_one(Path(root).expanduser(), ("", "cityscapes", "*"), is_home, what, HOW_CITYSCAPES)


def _cityscapes_pairs(home: Path, split: str) -> list[Pair]:
    folder, ending = home / "leftImg8bit" / split, "_leftImg8bit.png"
    cities = [city for city in visible(folder) if city.is_dir()] if folder.is_dir() else []
    pairs = []
    for path in (path for city in cities for path in visible(city, f"*{ending}")):
        start = f"gtFine/{split}/{path.parent.name}/{path.name.removesuffix(ending)}_gtFine"
        kinds = [f"{start}_{kind}.png" for kind in ("labelTrainIds", "labelIds")]
        pairs.append((str(path.relative_to(home)), next((name for name in kinds if (home / name).is_file()), kinds[0])))
    if not pairs:
        raise DataError(f"{printable(str(folder))}: expected CITY/NAME{ending}, found no such image\n{HOW_CITYSCAPES}")
    return pairs


def folder_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> Splits:
    """Return (train, val) of a folder with images/ and masks/; without val/ 80 % and 20 % of it, by a fixed seed.

    Args, Raises: as folder_parts.
    """
    parts = folder_parts(root, cache, allow_missing)
    return (parts[0], parts[1]) if len(parts) == 2 else _divided(parts[0])


def folder_parts(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> list[Images]:
    """Return train and val of a folder with images/ and masks/, or all of it as one part. Their targets are LabelMaps.

    Without classes.txt the classes are the indices up to the largest that a mask holds: all masks are read.

    Args:
        root: the folder; train/ and val/ (or test/) may be above or below images/ and masks/.
        cache: folder for the index of headers; None: the user's cache folder.
        allow_missing: leave out images without a mask, and say so in the note; else they are an error.

    Raises:
        DataError: there is no such folder, a mask is missing, or fewer than two classes are in the masks.
    """
    root = Path(root).expanduser()
    places = find_folder(root)
    pairs = {split: _folder_pairs(root, *its_own) for split, its_own in places.items()}
    classes = _class_names(root) or _indices_in_use(root, [pair for each in pairs.values() for pair in each])
    reader = MapReader(root, index_table(len(classes)))
    return [
        map_split(split or "all images", its_own, classes, reader, cache, allow_missing)
        for split, its_own in pairs.items()
    ]


def find_folder(root: str | Path) -> dict[str, tuple[str, str]]:
    """Folders of images and of masks, by the split's name, the one to learn from first; one without name if there are no splits.

    Raises:
        DataError: there are none.
    """
    root = Path(root).expanduser()

    for pattern, names in (("{0}/{1}", subfolders(root / "images")), ("{1}/{0}", subfolders(root))):
        places = {name: (pattern.format("images", name), pattern.format("masks", name)) for name in names}
        there = {name: place for name, place in places.items() if _are_folders(root, place)}
        train, val = first_of(TRAIN_SPLITS, there), first_of(VAL_SPLITS, there)
        if train and val:
            return {train: there[train], val: there[val]}
        if train and pattern == "{1}/{0}":
            return {"": there[train]}
    if _are_folders(root, ("images", "masks")):
        return {"": ("images", "masks")}
    raise DataError(f"{printable(str(root))}: expected images/ and masks/ there, found none\n{HOW_FOLDER}")


def _are_folders(root: Path, places: tuple[str, str]) -> bool:
    return all((root / name).is_dir() for name in places)


def _folder_pairs(root: Path, images: str, masks: str) -> list[Pair]:
    found = walk(root, images)
    names = [os.fsdecode(name) for name in found.names]
    if not names:
        raise DataError(f"{printable(str(root / images))}: expected images, found none\n{HOW_FOLDER}")
    pairs = [(name, f"{masks}{os.path.splitext(name)[0].removeprefix(images)}.png") for name in names]  # noqa: PTH122
    of_mask: dict[str, str] = {}
    for name, mask in pairs:
        if (other := of_mask.setdefault(mask, name)) != name:
            raise DataError(
                f"{printable(str(root))}: expected one image of each mask, found {printable(other)} and {printable(name)}; "
                "rename one of them, and its mask"
            )
    return pairs


def _indices_in_use(root: Path, pairs: Sequence[Pair]) -> list[str]:
    """Names of the classes from 0 to the largest in any map. A map that is missing is reported when the split is opened."""
    reader = MapReader(root, index_table(MOST_CLASSES))
    used = np.zeros(256, dtype=np.bool_)
    there = [mask for _, mask in pairs if os.path.lexists(reader.path(mask))]
    for start in range(0, len(there), CHUNK):  # a damaged one ends it, with the rest of its chunk
        with ThreadPoolExecutor(THREADS) as pool:
            for found in pool.map(lambda mask: np.unique(reader(mask)), there[start : start + CHUNK]):
                used[found] = True
    largest = int(np.flatnonzero(used[:VOID]).max(initial=-1))
    if there and largest < 1:
        void = f" and {VOID}, which marks pixels that do not count" if used[VOID] else ""
        raise DataError(
            f"{printable(str(root))}: expected the indices of at least two classes in the masks, found only "
            f"{'0' if largest == 0 else 'none'}{void}; write the index of its class, as 0 or 1, for each pixel"
        )
    return [str(k) for k in range(largest + 1)]


def _divided(images: Images) -> Splits:
    scored = np.random.default_rng(SPLIT_SEED).permutation(len(images))[: max(1, round(VAL_SHARE * len(images)))]
    chosen = np.isin(np.arange(len(images)), scored)
    if chosen.all():
        raise DataError(
            f"{printable(str(images.root))}: expected at least 2 images, to score a fifth of them, found one"
        )
    where = printable(str(images.root))
    return (
        images.select(np.flatnonzero(~chosen), f"80 % of {where} (drawn, seed {SPLIT_SEED})"),
        images.select(np.flatnonzero(chosen), f"20 % of {where} (drawn, seed {SPLIT_SEED})"),
    )


def segmented_splits(root: str | Path, cache: Path | None = None, allow_missing: bool = False) -> Splits:
    """Return both splits of a folder with images/ and masks/, or else of PASCAL VOC 2012 with whichever of SBD's maps there are.

    Args, Raises: as folder_splits and voc12aug_splits.
    """
    if _has_folder(root):
        return folder_splits(root, cache, allow_missing)
    return voc12aug_splits(find_segmented(root), cache, allow_missing, aug_alone=True)


def find_segmented(root: str | Path) -> Path:
    """The path, if it is a folder with images/ and masks/ or holds PASCAL VOC 2012; looks at no image.

    Raises:
        DataError: it is neither.
    """
    root = Path(root).expanduser()
    if not _has_folder(root):
        what = "images/ and masks/ there, or PASCAL VOC 2012 with ImageSets/Segmentation there or below it"
        find_one(root, VOC12_HOMES, _is_voc12, what, HOW_FOLDER)
    return root


def _has_folder(root: str | Path) -> bool:
    try:
        find_folder(root)
    except DataError:
        return False
    return True


def _class_names(home: Path) -> list[str]:
    """The lines of classes.txt; none where there is no such file.

    Raises:
        DataError: it cannot be read, or names too many.
    """
    if not (home / NAMES).is_file():
        return []
    names = read_ids(home / NAMES, f"write the name of a class a line, or remove {NAMES}")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{printable(str(home / NAMES))}: expected at most {MOST_CLASSES} classes, found {len(names)}; join some"
        )
    return names


def _cityscapes_table() -> Int16[np.ndarray, "256"]:
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[:CITYSCAPES_KNOWN] = table[VOID] = VOID
    table[list(CITYSCAPES_IDS)] = np.arange(len(CITYSCAPES_IDS))
    return table
