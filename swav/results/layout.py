"""Which tables the page has, in its order, with its columns and its words; and those that we add. And what a table is, in no
format."""

import dataclasses

from swav.results.units import PERCENT, decimals_of, unit_of

BEST_STAGE = "name of the best stage"
OURS, PAGE_ROW, PUBLISHED, SIBLING = "ours", "page", "published", "sibling"  # kinds of rows


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading, what stands below it, and how many decimals the page gives it and its unit; None: those of its metric."""

    name: str
    bench: str
    metric: str
    page_decimals: int | None = None
    unit: str | None = None

    @property
    def heading(self) -> str:
        """The name, with the unit where it is not the page's."""
        unit = PERCENT if self.metric == BEST_STAGE else self.unit or unit_of(self.metric)
        return self.name if unit == PERCENT else f"{self.name} [{unit}]"

    @property
    def decimals(self) -> int:
        return decimals_of(self.metric) if self.page_decimals is None else self.page_decimals


@dataclasses.dataclass(frozen=True)
class TableLayout:
    """A table before it is filled.

    Attributes:
        section: heading and sentence of the part of the page that it stands in.
        labels: headings of the columns that name a row.
        columns: those with numbers.
        last: headings after them.
        of_the_page: it is always there; another only where it has a row.
    """

    section: tuple[str, str]
    title: str
    sentence: str
    columns: tuple[Column, ...]
    labels: tuple[str, ...] = ("Self-Supervised Config",)
    last: tuple[str, ...] = ()
    of_the_page: bool = True


CLASSIFICATION = (
    "Classification",
    "The classification benchmarks include four downstream data sets: VOC, ImageNet, iNaturalist2018 and Places205. "
    "If not specified, the results are top-1 (%).",
)
DETECTION = (
    "Detection",
    "The detection benchmarks include two downstream data sets, Pascal VOC 2007 + 2012 and COCO2017. They follow the "
    "evaluation protocols set up by MoCo.",
)
SEGMENTATION = (
    "Segmentation",
    "The segmentation benchmarks include two downstream data sets, Cityscapes and Pascal VOC 2012 + Aug. They follow the "
    "evaluation protocols set up by MMSegmentation.",
)
BEYOND = ("Further benchmarks", "Benchmarks that the published page has no table of.")
OWN_DATA = (
    "Protocol own",
    "Frozen features of the data set at hand, in %: kNN, a logistic regression, and for segmentation a linear layer on every "
    "place of the last map. In brackets the 95 % interval over the scored images.",
)
STAGES = (
    "Feature1 to Feature5 have no global average pooling: the feature map is pooled to specific dimensions, then a linear "
    "layer does the classification."
)


def _stages(bench: str) -> tuple[Column, ...]:
    return tuple(Column(f"Feature{i}", bench, f"top-1 feature{i}") for i in range(1, 6))


PAGE: tuple[TableLayout, ...] = (
    TableLayout(
        CLASSIFICATION,
        "VOC SVM / Low-shot SVM",
        "The Best Layer is the layer whose feature map gives the best result. If it is feature3, that is the second stage "
        "of a ResNet (1 is the stem, 2 to 5 are the four stages). k=1 to 96 is the number of positive images per class of "
        "the low-shot SVM. mAP (%).",
        (
            Column("Best Layer", "svm", BEST_STAGE),
            Column("SVM", "svm", "mAP best layer"),
            *(Column(f"k={k}", "lowshot", f"mAP k={k}") for k in (1, 2, 4, 8, 16, 32, 64, 96)),
        ),
    ),
    TableLayout(CLASSIFICATION, "ImageNet Linear Evaluation", STAGES, _stages("linear-stages")),
    TableLayout(
        CLASSIFICATION,
        "ImageNet Linear Evaluation and Fine-tuning",
        "One linear layer on the features after global average pooling, and fine-tuning of the whole network on all labels. "
        "Results are top-1 (%).",
        (Column("Linear Eval", "linear", "top-1", 1), Column("Fine-tuning", "semisup", "top-1 100%", 1)),
        labels=("Algorithm", "Backbone", "Epoch", "Batch Size"),
        last=("Links",),
    ),
    TableLayout(CLASSIFICATION, "Places205 Linear Evaluation", STAGES, _stages("places205")),
    TableLayout(CLASSIFICATION, "iNaturalist2018 Linear Evaluation", STAGES, _stages("inat18"), of_the_page=False),
    TableLayout(
        CLASSIFICATION,
        "ImageNet Nearest-Neighbor Classification",
        "The results are obtained from the features after global average pooling. k=10 to 200 is the number of nearest "
        "neighbours.",
        tuple(Column(f"k={k}", "knn", f"top-1 k={k}", 1) for k in (10, 20, 100, 200)),
    ),
    TableLayout(DETECTION, "Pascal VOC 2007 + 2012", "", (Column("AP50", "detect-voc", "AP50"),)),
    TableLayout(
        DETECTION,
        "COCO2017",
        "",
        tuple(
            Column(f"{heading}({kind.capitalize()})", "detect-coco", f"{kind} {metric}", 1)
            for kind in ("box", "mask")
            for heading, metric in (("mAP", "AP"), ("AP50", "AP50"), ("AP75", "AP75"))
        ),
    ),
    TableLayout(SEGMENTATION, "Pascal VOC 2012 + Aug", "", (Column("mIOU", "segment-voc", "mIoU"),)),
    TableLayout(SEGMENTATION, "Cityscapes", "", (Column("mIOU", "segment-cityscapes", "mIoU"),), of_the_page=False),
    TableLayout(
        BEYOND,
        "ImageNet with few labels",
        "The whole network is fine-tuned on 1 % and on 10 % of the labels. Results in %.",
        tuple(
            Column(f"{share} {top}", "semisup", f"{top} {share}", 1)
            for share in ("1%", "10%")
            for top in ("top-1", "top-5")
        ),
        of_the_page=False,
    ),
)


# -- a table, in no format yet


@dataclasses.dataclass(frozen=True)
class Link:
    """A file, relative to the folder of results.json (percent-encoded); without a target a text with a tooltip."""

    text: str
    target: str = ""
    title: str = ""


@dataclasses.dataclass(frozen=True)
class Cell:
    """Text, the numbers of its notes, and what it links."""

    text: str
    marks: tuple[int, ...] = ()
    links: tuple[Link, ...] = ()


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a published row stands, what must be known to read it, and its address where one is known."""

    text: str
    url: str = ""


@dataclasses.dataclass(frozen=True)
class TableRow:
    """`kind` is ours, page (the page's own row), published (another measurement of the same training) or sibling (another method or
    training). Only ours have no source."""

    kind: str
    cells: tuple[Cell, ...]
    source: Source | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that is filled, in no format yet.

    Attributes:
        section: heading and sentence of the part of the page that it stands in.
        title, sentence: its own.
        comparable: whether its rows may stand beside published numbers; a table that is not follows the one that is.
        headings: of the columns.
        numeric: for each column whether it holds numbers; others name the row or link files.
        rows, notes: a cell's marks count the notes from 1.
    """

    section: tuple[str, str]
    title: str
    sentence: str
    comparable: bool
    headings: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[TableRow, ...]
    notes: tuple[str, ...]

    @property
    def siblings(self) -> int:
        """Number of rows of other methods and trainings, which are folded away."""
        return sum(row.kind == SIBLING for row in self.rows)

    def without_siblings(self) -> "Table":
        """The table as it is shown unless siblings are asked for."""
        return dataclasses.replace(self, rows=tuple(row for row in self.rows if row.kind != SIBLING))
