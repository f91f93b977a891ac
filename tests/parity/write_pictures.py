"""Writes the picture files of tests/image/raster_test.cc and what Pillow makes of them.

Usage: python tests/parity/write_pictures.py [--out tests/data/pictures]
expected.json names for each file the shown size and the SHA-256 of its RGB pixels. JPEG pixels are Pillow's own. PNG
pixels follow the rules of image/raster.h where Pillow has none or another: alpha over black, 16 bits to 8 by rounding
v / 257. Written with Pillow 13.0 and numpy 2.
"""

import argparse
import hashlib
import io
import json
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

WIDTH, HEIGHT = 50, 34


def scene(channels, bits=8):
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = []
    for c in range(channels):
        plane = 0.5 * x / WIDTH + 0.3 * y / HEIGHT + 0.05 * c + 0.1 * rng.random((HEIGHT, WIDTH))
        plane[10:20, 5 + 3 * c:25] = 0.95 - 0.2 * c
        planes.append(plane)
    top = 2 ** bits - 1
    pixels = np.clip(np.stack(planes, -1) * top, 0, top).astype(np.uint16 if bits == 16 else np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels, colour, bits, extra=b"", interlaced=False, after=b""):
    """colour: PNG's colour type. Rows unfiltered, optionally in the seven passes of Adam7."""
    height, width = pixels.shape[:2]
    if bits == 16:
        pixels = pixels.astype(">u2")

    def rows(part):
        out = b""
        for row in part:
            data = row.tobytes()
            if bits < 8:
                data = np.packbits(((row[:, None] >> np.arange(bits - 1, -1, -1)) & 1).astype(np.uint8)).tobytes()
            out += b"\0" + data
        return out

    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
        data = b"".join(rows(pixels[y::dy, x::dx]) for y, x, dy, dx in passes if pixels[y::dy, x::dx].size)
    else:
        data = rows(pixels)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(data)) + after +
            chunk(b"IEND", b""))


def exif(orientation):
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + b"\0\0\0\0"


def over_black(colour, alpha):
    return ((colour.astype(np.int64) * alpha.astype(np.int64) + 127) // 255).astype(np.uint8)


def to_eight(pixels):
    return ((pixels.astype(np.int64) * 2 + 257) // 514).astype(np.uint8)


def rgb(pixels):
    return np.repeat(pixels[..., None], 3, -1) if pixels.ndim == 2 else pixels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "data/pictures")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    expected = {}

    def store(name, data, pixels):
        (out / name).write_bytes(data)
        pixels = np.ascontiguousarray(rgb(pixels))
        expected[name] = {"width": pixels.shape[1], "height": pixels.shape[0],
                          "sha256": hashlib.sha256(pixels.tobytes()).hexdigest()}

    def store_jpeg(name, image, **options):
        data = io.BytesIO()
        image.save(data, "JPEG", **options)
        with Image.open(io.BytesIO(data.getvalue())) as read:
            store(name, data.getvalue(), np.asarray(ImageOps.exif_transpose(read).convert("RGB")))

    grey, colour = Image.fromarray(scene(1)), Image.fromarray(scene(3))
    store_jpeg("grey.jpg", grey, quality=92)
    store_jpeg("one_pixel.jpg", grey.crop((3, 3, 4, 4)))
    store_jpeg("colour_444.jpg", colour, quality=95, subsampling=0)
    store_jpeg("colour_420.jpg", colour, quality=80, subsampling=2)
    store_jpeg("progressive.jpg", colour, quality=85, progressive=True)
    store_jpeg("grey_progressive.jpg", grey, quality=85, progressive=True)
    store_jpeg("restarts.jpg", grey, quality=85, restart_marker_blocks=2)
    store_jpeg("cmyk.jpg", colour.convert("CMYK"), quality=90)
    for orientation in range(1, 9):
        store_jpeg(f"exif_{orientation}.jpg", colour, quality=90, exif=b"Exif\0\0" + exif(orientation))

    store("grey.png", png(scene(1), 0, 8), scene(1))
    store("one_pixel.png", png(scene(1)[3:4, 3:4], 0, 8), scene(1)[3:4, 3:4])
    store("colour.png", png(scene(3), 2, 8), scene(3))
    store("interlaced.png", png(scene(3), 2, 8, interlaced=True), scene(3))
    store("grey_16.png", png(scene(1, 16), 0, 16), to_eight(scene(1, 16)))
    store("colour_16.png", png(scene(3, 16), 2, 16), to_eight(scene(3, 16)))
    store("grey_alpha.png", png(scene(2), 4, 8), over_black(scene(2)[..., 0], scene(2)[..., 1]))
    store("rgba.png", png(scene(4), 6, 8), over_black(scene(4)[..., :3], scene(4)[..., 3:]))
    bits = (scene(1) > 128).astype(np.uint8)
    store("one_bit.png", png(bits, 0, 1), bits * 255)
    four = scene(1) >> 4
    store("four_bits.png", png(four, 0, 4), four * 17)
    table = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    store("palette.png", png(scene(1), 3, 8, extra=chunk(b"PLTE", table.tobytes())), table[scene(1)])
    alpha = np.arange(256, dtype=np.uint8)
    store("palette_alpha.png",
          png(scene(1), 3, 8, extra=chunk(b"PLTE", table.tobytes()) + chunk(b"tRNS", alpha.tobytes())),
          over_black(table[scene(1)], alpha[scene(1)][..., None]))
    turned = np.rot90(scene(3), -1)  # clockwise
    store("exif_6.png", png(scene(3), 2, 8, extra=chunk(b"eXIf", exif(6))), turned)
    store("exif_6_behind.png", png(scene(3), 2, 8, after=chunk(b"eXIf", exif(6))), turned)
    for name in ("exif_6.png", "exif_6_behind.png"):  # Pillow agrees about the chunk in both places
        with Image.open(out / name) as read:
            read.load()
            assert np.array_equal(np.asarray(ImageOps.exif_transpose(read)), turned), name
    (out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
