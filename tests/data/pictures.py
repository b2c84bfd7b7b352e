"""Images for tests of views: drawn ones, photographs, and crops of either."""

import numpy as np
import simplejpeg
import torch
from PIL import Image

from swav.data.augment.crops import cut, planes


def picture(height, width, seed=0):
    """Smooth colours with some grain: neither flat nor noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(smooth + rng.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)


def photos(data_root):
    files = sorted((data_root / "photos").glob("*.JPEG"))[:8]
    return [simplejpeg.decode_jpeg(file.read_bytes()) for file in files]


def cut_alone(image, box, size):
    out = torch.empty(size, size, 3, dtype=torch.uint8)
    cut(planes(image), box, out.permute(2, 0, 1)[None])
    return out.numpy()
