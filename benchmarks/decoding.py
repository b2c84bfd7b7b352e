"""Peak memory of reading one image, by format and kind: what the limits of swav/data/sources/damage.py rest on.

    python benchmarks/decoding.py [SIDE]        of images of SIDE x SIDE pixels (default 4000)

Every row is a process of its own: the peak of its resident memory while the file, in memory already, is decoded. Images are noise
(what compresses worst) and a drawing (what compresses best), of which the larger is shown.
"""

import io
import subprocess
import sys

KINDS = {
    "JPEG": {},
    "JPEG, progressive": {"progressive": True, "subsampling": 0},
    "JPEG, CMYK, progressive": {"mode": "CMYK", "progressive": True},
    "PNG": {"compress_level": 1},
    "PNG, alpha": {"mode": "RGBA", "compress_level": 1},
    "PNG, 16 bits": {"mode": "I;16", "compress_level": 1},
    "WEBP": {"method": 0},
    "WEBP, lossless, alpha": {"mode": "RGBA", "lossless": True, "quality": 0, "method": 0},
    "AVIF, alpha": {"mode": "RGBA", "speed": 10, "subsampling": "4:4:4"},
    "JPEG2000, alpha": {"mode": "RGBA"},
    "TIFF, alpha, one strip": {"mode": "RGBA", "compression": "tiff_lzw", "tiffinfo": {278: 2**20}},
    "BMP": {},
    "GIF": {"mode": "P"},
    "PPM": {},
    "PNG, 16-bit colours, white_level": {"deep": True},
}


def encoded(kind: str, side: int, noise: bool) -> bytes:
    """An image file."""
    import cv2
    import numpy as np
    from PIL import Image, ImageFile

    ImageFile.MAXBLOCK = 2**28
    options = dict(KINDS[kind])
    mode = options.pop("mode", "RGB")
    y, x = np.mgrid[0:side, 0:side]
    drawn = np.stack([(x // 37 + y // 53) % 256, x * 255 // side, y * 255 // side, (x // 9) % 256], -1).astype(np.uint8)
    rgba = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8) if noise else drawn
    if options.pop("deep", False):
        return cv2.imencode(".png", rgba.astype(np.uint16) * 16)[1].tobytes()
    image = Image.fromarray(rgba[..., 0].astype(np.uint16) * 257 if mode == "I;16" else rgba)
    file = io.BytesIO()
    (image if mode == "I;16" else image.convert("RGBA" if mode == "RGBA" else "RGB").convert(mode)).save(
        file, kind.partition(",")[0], **options
    )
    return file.getvalue()


def measure(kind: str, side: int, noise: bool) -> float:
    """Bytes per pixel at the peak, beside the file."""
    from pathlib import Path

    from swav.data.sources.decode import Decoding, decode

    def status(key: str) -> int:
        return int(Path("/proc/self/status").read_text().split(key)[1].split()[0]) * 1024

    data = sys.stdin.buffer.read()
    how = Decoding(4095) if "white_level" in kind else Decoding()
    before = status("VmRSS:")
    Path("/proc/self/clear_refs").write_text("5")
    decode(data, kind, how=how)
    return (status("VmHWM:") - before) / side**2


def main() -> None:
    if len(sys.argv) > 2:
        print(measure(sys.argv[2], int(sys.argv[1]), sys.argv[3] == "True"))
        return
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
    print("| image | peak beside the file [bytes per pixel] |\n|---|---|")
    for kind in KINDS:
        found = []
        for noise in (False, True):
            command = [sys.executable, __file__, str(side), kind, str(noise)]
            done = subprocess.run(command, input=encoded(kind, side, noise), capture_output=True, check=True)
            found.append(float(done.stdout))
        print(f"| {kind} | {max(found):.1f} |", flush=True)


if __name__ == "__main__":
    main()
