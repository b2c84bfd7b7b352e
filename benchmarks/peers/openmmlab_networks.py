"""The networks of MMDetection and MMSegmentation beside ours, and what openmmlab.py needs to read MMSelfSup's settings."""

import importlib.util
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn


def _stand_in() -> None:
    """Give MMCV the two compiled operators that are used here."""

    class Compiled(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            return None

    sys.modules["mmcv._ext"] = Compiled("mmcv._ext")
    nms, roi_align = (importlib.import_module(f"mmcv.ops.{name}") for name in ("nms", "roi_align"))

    class Suppression:
        @staticmethod
        def apply(boxes: Tensor, scores: Tensor, iou: float, offset: int, *_: object) -> Tensor:
            assert offset == 0
            return torchvision.ops.nms(boxes, scores, iou)

    def aligned(
        x: Tensor,
        rois: Tensor,
        size: Any,
        scale: float = 1.0,
        samples: int = 0,
        mode: str = "avg",
        aligned: bool = True,
    ) -> Tensor:
        assert aligned and mode == "avg"
        return torchvision.ops.roi_align(x, rois, size, scale, samples, aligned=True)

    def forward(self: Any, x: Tensor, rois: Tensor) -> Tensor:
        return aligned(x, rois, self.output_size, self.spatial_scale, self.sampling_ratio, self.pool_mode, self.aligned)

    nms.NMSop = Suppression
    roi_align.RoIAlign.forward = forward
    roi_align.roi_align = importlib.import_module("mmcv.ops").roi_align = aligned


warnings.filterwarnings("ignore")
_stand_in()

from mmcv import Config  # noqa: E402
from mmdet.core import BitmapMasks  # noqa: E402
from mmdet.models import build_detector  # noqa: E402
from mmdet.models.builder import SHARED_HEADS  # noqa: E402
from mmseg.models import build_segmentor  # noqa: E402

from swav.evaluation.dense_settings import (  # noqa: E402
    DetectCocoSettings,
    DetectVocSettings,
    SegmentCityscapesSettings,
    SegmentVocSettings,
)
from swav.evaluation.detection.models import c4_detector, fpn_detector  # noqa: E402
from swav.evaluation.detection.structures import C4_COUNTS, FPN_COUNTS, MMDET, Truth  # noqa: E402
from swav.evaluation.segmentation.fcn import Fcn, pixel_loss, resized  # noqa: E402
from swav.evaluation.segmentation.inference import classes_of, sliding_logits  # noqa: E402
from swav.network.resnet import ResNet  # noqa: E402


def loaded(path: Path) -> Any:
    """Return the module in a file. (One of the peers brings a package `tests` of its own.)"""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TESTS = Path(__file__).parents[2] / "tests/evaluation"
from_mmdet = loaded(TESTS / "detection/key_maps.py").from_mmdet
from_mmseg = loaded(TESTS / "segmentation/key_maps.py").from_mmseg

# Its configurations alone are read: the package itself asks for MMClassification.
MMSELFSUP = Path(str(importlib.util.find_spec("mmselfsup").submodule_search_locations[0]))
CONFIGS = MMSELFSUP / ".mim/configs/benchmarks"
DETECT = {
    "detect-voc": (DetectVocSettings(), "mmdetection/voc0712/faster_rcnn_r50_c4_mstrain_24k_voc0712.py"),
    "detect-coco": (DetectCocoSettings(), "mmdetection/coco/mask_rcnn_r50_fpn_mstrain_1x_coco.py"),
}
SEGMENT = {
    "segment-voc": (SegmentVocSettings(), "mmsegmentation/voc12aug/fcn_r50-d8_512x512_20k_voc12aug.py"),
    "segment-cityscapes": (
        SegmentCityscapesSettings(),
        "mmsegmentation/cityscapes/fcn_r50-d8_769x769_40k_cityscapes.py",
    ),
}
GPUS = {"segment-voc": 4, "segment-cityscapes": 4, "detect-voc": 8, "detect-coco": 8}  # in no configuration
CLASSES, CHANNELS, KEPT, ALL = 7, 512, 150, 10**6
EPOCH = 7330  # steps of COCO


def config(path: str) -> Any:
    """Return a configuration of MMSelfSup's, with the BatchNorm of one process and without files of weights."""
    if "ResLayerExtraNorm" not in SHARED_HEADS:
        loaded(MMSELFSUP / "models/utils/res_layer_extra_norm.py")
    found = Config.fromfile(CONFIGS / path, import_custom_modules=False)

    def visit(node: Any) -> None:
        for key, value in [*node.items()] if isinstance(node, dict) else enumerate(node):
            if key == "init_cfg":
                node[key] = None
            elif value == "SyncBN":
                node[key] = "BN"
            elif isinstance(value, dict | list):
                visit(value)

    visit(found.model)
    return found


def step(pipeline: Any, kind: str) -> Any:
    """Return one step of a pipeline, also of one inside it."""
    flat = [inner for outer in pipeline for inner in (outer, *outer.get("transforms", []))]
    return next(each for each in flat if each["type"] == kind)


# --- networks ---------------------------------------------------------------------------------------------------------


def unlike_fresh(model: nn.Module) -> nn.Module:
    """Draw statistics and weights as training leaves them, so that an exchange of two layers shows."""
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.rand(module.weight.shape, generator=draw) + 0.5)
                module.bias.normal_(0, 0.1, generator=draw)
                module.running_mean.normal_(0, 0.1, generator=draw)
                module.running_var.copy_(torch.rand(module.weight.shape, generator=draw) + 0.5)
            elif isinstance(module, nn.Dropout2d):
                module.p = 0.0
        for name, parameter in model.named_parameters():
            if any(part in name for part in ("rpn_head", "fc_cls", "fc_reg", "conv_seg", "conv_logits")):
                parameter.normal_(0, 0.1 if "fc_cls" in name else 0.02, generator=draw)
    return model


def gradients(ours: nn.Module, theirs: nn.Module, renamed: Callable[[Any], dict[str, Tensor]]) -> float:
    """Return the largest difference of a parameter's gradient, relative to its norm."""
    there = renamed({name: parameter.grad for name, parameter in theirs.named_parameters()})
    return max(
        float((parameter.grad - there[name]).norm() / there[name].norm().clamp(min=1e-12))
        for name, parameter in ours.named_parameters()
    )


def segmenter(name: str) -> Iterator[tuple[str, float]]:
    """Yield name and the largest difference of an FCN's losses, gradients and logits."""
    settings, path = SEGMENT[name]
    made = config(path).model
    made.decode_head.num_classes = made.auxiliary_head.num_classes = CLASSES
    theirs = unlike_fresh(build_segmentor(made)).double()
    trunk = ResNet("bottleneck", (3, 4, 6, 3))
    ours = Fcn(trunk, trunk.stage_channels, CLASSES, channels=CHANNELS)
    unlike_fresh(ours).double().load_state_dict(from_mmseg(theirs.state_dict()))
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2, 3, 129, 113, generator=draw, dtype=torch.float64)
    truth = torch.randint(0, CLASSES, (2, 129, 113), generator=draw)
    truth[torch.rand(truth.shape, generator=draw) < 0.3] = 255
    losses = theirs.train().forward_train(x, [{}, {}], truth[:, None])
    parts = [
        weight * pixel_loss(resized(logits, (129, 113), settings.align_corners), truth)
        for weight, logits in ours.train()(x)
    ]
    there = [losses["decode.loss_ce"], losses["aux.loss_ce"]]
    yield f"{name}: loss {float(parts[0]):.4f}", abs(float(parts[0] - there[0]))
    yield f"{name}: auxiliary loss {float(parts[1]):.4f}", abs(float(parts[1] - there[1]))
    sum(parts).backward()
    sum(there).backward()
    yield f"{name}: gradients, relative", gradients(ours, theirs, from_mmseg)
    ours.eval(), theirs.eval()
    meta = [{"ori_shape": (140, 91, 3), "img_shape": (129, 113, 3), "flip": False}]

    def logits(part: Tensor) -> Tensor:
        return resized(ours(part)[0][1], (part.shape[2], part.shape[3]), settings.align_corners)

    side, stride = (0, 0)
    if settings.windows:
        side, stride = 65, round(settings.windows * 65)
        theirs.test_cfg = Config({"mode": "slide", "crop_size": (side, side), "stride": (stride, stride)})
    with torch.no_grad():
        whole = theirs.slide_inference(x[:1], meta, False) if side else theirs.encode_decode(x[:1], meta)
        own = sliding_logits(logits, x[:1], side, stride) if side else logits(x[:1])
        classes = classes_of(logits, x[:1], (140, 91), align_corners=settings.align_corners, side=side, stride=stride)
        yield f"{name}: logits up to {float(own.abs().max()):.1f}", float((own - whole).abs().max())
        yield f"{name}: pixels of another class", int((classes.numpy() != theirs.simple_test(x[:1], meta)[0]).sum())


def detector(name: str) -> Iterator[tuple[str, float]]:
    """Yield name and the largest difference of a detector's losses, gradients and detections."""
    masks = name == "detect-coco"
    made = config(DETECT[name][1]).model
    made.roi_head.bbox_head.num_classes = CLASSES
    if masks:
        made.roi_head.mask_head.num_classes = CLASSES
    made.train_cfg.rpn.sampler.num = ALL
    made.train_cfg.rcnn.sampler.num = ALL
    made.train_cfg.rpn_proposal.max_per_img = made.test_cfg.rpn.max_per_img = KEPT
    theirs = unlike_fresh(build_detector(made))
    base, build = (FPN_COUNTS, fpn_detector) if masks else (C4_COUNTS, c4_detector)
    counts = base._replace(anchors=ALL, rois=ALL, after_nms=(KEPT, KEPT))
    ours = build(ResNet("bottleneck", (3, 4, 6, 3)), CLASSES, MMDET, 0, counts=counts)
    ours.load_state_dict(from_mmdet(theirs.state_dict()))
    sizes, boxes, labels = (
        [(200, 310), (187, 250)],
        [
            torch.tensor([[20.3, 30.2, 150, 180], [100, 20, 300.5, 120.7], [105, 22, 290, 125]]),
            torch.tensor([[10.0, 10, 60, 70], [30, 40, 240, 186.5], [30, 40, 240, 186.5]]),
        ],
        [torch.tensor([1, 3, 0]), torch.tensor([6, 2, 5])],
    )
    draw = torch.Generator().manual_seed(3)
    x = torch.zeros(2, 3, 224, 320)
    metas, truths, bitmaps = [], [], []
    for i, (height, width) in enumerate(sizes):
        x[i, :, :height, :width] = torch.randn(3, height, width, generator=draw)
        high, wide = (-(-side // 32) * 32 for side in (height, width))
        metas.append(
            {
                "img_shape": (height, width, 3),
                "pad_shape": (high, wide, 3),
                "batch_input_shape": (224, 320),
                "ori_shape": (height, width, 3),
                "scale_factor": np.ones(4, np.float32),
                "flip": False,
            }
        )
        y, left = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        of = [((left > a) & (left < c) & (y > b) & (y < d) & ((left + y) % 9 > 2)).byte() for a, b, c, d in boxes[i]]
        truths.append(Truth(boxes[i], labels[i], torch.stack(of) if masks else None))
        bitmaps.append(
            BitmapMasks(nn.functional.pad(torch.stack(of), (0, wide - width, 0, high - height)).numpy(), high, wide)
        )
    more = {"gt_masks": bitmaps} if masks else {}
    found = theirs.train().forward_train(x, metas, boxes, labels, **more)
    terms = {key: term.total / term.count for key, term in ours.train()(x, sizes, truths, [3, 4]).items()}
    names = {
        "rpn_objectness": "loss_rpn_cls",
        "rpn_box": "loss_rpn_bbox",
        "classifier": "loss_cls",
        "box": "loss_bbox",
        "mask": "loss_mask",
    }
    there = {key: sum(found[names[key]]) if "rpn" in key else found[names[key]] for key in terms}
    for key, term in terms.items():
        yield f"{name}: {key} loss {float(term):.4f}", abs(float(term - there[key]))
    sum(terms.values()).backward()
    sum(there.values()).backward()
    yield f"{name}: gradients, relative", gradients(ours, theirs, from_mmdet)
    with torch.no_grad():
        detections = ours.eval()(x, sizes)
        maps = theirs.eval().extract_feat(x)
        proposals = theirs.rpn_head.simple_test_rpn(maps, metas)
        rows, classes = theirs.roi_head.simple_test_bboxes(
            maps, metas, proposals, theirs.roi_head.test_cfg, rescale=False
        )
        worst, count = [0.0, 0.0, 0.0], sum(map(len, rows))
        for i, (row, kind, own) in enumerate(zip(rows, classes, detections, strict=True)):
            assert torch.equal(kind, own.labels), "other classes, or in another order"
            worst[0] = max(worst[0], float((row[:, :4] - own.boxes).abs().max()))
            worst[1] = max(worst[1], float((row[:, 4] - own.scores).abs().max()))
            if masks:
                rois = torch.cat([torch.full_like(row[:, :1], i), row[:, :4]], dim=1)
                logits = theirs.roi_head._mask_forward(maps, rois)["mask_pred"]
                probability = logits.sigmoid()[torch.arange(len(kind)), kind]
                worst[2] = max(worst[2], float((probability - own.masks).abs().max()))
    yield f"{name}: boxes of {count} detections [pixels]", worst[0]
    yield f"{name}: their scores", worst[1]
    if masks:
        yield f"{name}: their masks", worst[2]
