"""Writes the DICOM files of tests/image/dicom_test.cc, and what pydicom makes of them and of published files.

Usage: python tests/parity/write_dicom.py [--out tests/data/dicom]
Needs pydicom, pydicom-data, pylibjpeg with its libjpeg and openjpeg parts, pyjpegls, opencv-python-headless.

tests/data/dicom/*.dcm are made here. published.json describes the files of PyPI's pydicom and pydicom-data, which
third_party/install.sh can install (they are not part of this project). For each file and stage (stored: pixel_array;
modality: apply_modality_lut; voi: apply_voi_lut): SHA-256 of the float64 values, their least, largest, sum, and every
n-th value. `eight`: SHA-256 of the 8-bit pictures by the rules of image/dicom.h, written here in numpy and OpenCV.
Written with pydicom 3.0.2, numpy 2, OpenCV 4.
"""

import argparse
import hashlib
import json
import pathlib
import warnings

import cv2
import data_store
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian,
                         ImplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless)

ROWS, COLUMNS = 40, 51
DIGITAL_XRAY = "1.2.840.10008.5.1.4.1.1.1.1"


def scene(bits, signed):
    rng = np.random.default_rng(bits)
    y, x = np.mgrid[0:ROWS, 0:COLUMNS]
    share = np.clip(0.6 * x / COLUMNS + 0.3 * y / ROWS + 0.1 * rng.random((ROWS, COLUMNS)), 0, 1)
    share[5:12, 8:20] = 1
    share[20:25, 3:9] = 0
    low = -2 ** (bits - 1) if signed else 0
    return (low + share * (2 ** bits - 1)).astype(np.int32)


def make(bits, signed=False, photometric="MONOCHROME2", pixels=None, **tags):
    pixels = scene(bits, signed) if pixels is None else pixels
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DIGITAL_XRAY
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3.4"
    data.StudyInstanceUID, data.SeriesInstanceUID, data.Modality = "1.2.3", "1.2.3.5", "DX"
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.PhotometricInterpretation = photometric
    data.Rows, data.Columns = pixels.shape[:2]
    data.BitsAllocated = 8 if bits <= 8 else 16
    data.BitsStored, data.HighBit, data.PixelRepresentation = bits, bits - 1, int(signed)
    kind = ("i" if signed else "u") + str(data.BitsAllocated // 8)
    raw = pixels.astype("<" + kind).tobytes()
    data.PixelData = raw + b"\0" * (len(raw) % 2)
    data["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for name, value in tags.items():
        setattr(data, name, value)
    return data


def lut(name, entries, first, bits, signed=False):
    item = Dataset()
    item.add_new(0x00283002, "SS" if signed else "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", [int(v) for v in entries])
    return {name: Sequence([item])}


def stored_in(data, syntax):
    if syntax in (RLELossless, JPEGLSLossless, JPEG2000Lossless):
        data.compress(syntax)
    elif syntax == ExplicitVRBigEndian:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
        data.file_meta.TransferSyntaxUID = syntax
    else:
        data.file_meta.TransferSyntaxUID = syntax
    return data


def files():
    window = {"WindowCenter": 600, "WindowWidth": 700}
    ramp = (np.linspace(0, 1, 900) ** 2 * 4095).astype(int)
    yield "unsigned_8.dcm", make(8)
    yield "unsigned_10.dcm", make(10, **window)
    yield "unsigned_12.dcm", make(12, photometric="MONOCHROME1", WindowCenter=2000, WindowWidth=3000)
    yield "unsigned_15.dcm", make(15, WindowCenter=15000, WindowWidth=30000)
    yield "unsigned_16.dcm", make(16)
    yield "signed_12.dcm", make(12, signed=True, WindowCenter=-100, WindowWidth=1500.5)
    yield "signed_16.dcm", make(16, signed=True, RescaleSlope=0.5, RescaleIntercept=-1024)
    yield "rescale.dcm", make(12, RescaleSlope=2.5, RescaleIntercept=-500.25, WindowCenter=3000, WindowWidth=4000)
    yield "negative_slope.dcm", make(12, RescaleSlope=-1, RescaleIntercept=4095, WindowCenter=2000, WindowWidth=2500)
    yield "linear_exact.dcm", make(12, VOILUTFunction="LINEAR_EXACT", WindowCenter=2000, WindowWidth=1000)
    yield "sigmoid.dcm", make(12, VOILUTFunction="SIGMOID", WindowCenter=2000, WindowWidth=1000)
    yield "narrow.dcm", make(12, WindowCenter=2000, WindowWidth=1)
    yield "two_windows.dcm", make(12, WindowCenter=[1000, 3000], WindowWidth=[500, 800])
    yield "voi_lut.dcm", make(12, photometric="MONOCHROME1", **lut("VOILUTSequence", ramp, 500, 12))
    yield "voi_lut_signed.dcm", make(12, signed=True, **lut("VOILUTSequence", ramp, -300, 12, signed=True))
    yield "voi_lut_and_window.dcm", make(12, **window, **lut("VOILUTSequence", ramp, 500, 12))
    yield "modality_lut.dcm", make(10, **lut("ModalityLUTSequence", np.arange(1024)[::-1] * 60, 0, 16))
    yield "modality_lut_window.dcm", make(10, WindowCenter=30000, WindowWidth=20000,
                                          **lut("ModalityLUTSequence", np.arange(1024) * 60, 0, 16))
    yield "constant.dcm", make(12, pixels=np.full((5, 6), 77))
    dirty = make(12, pixels=scene(12, False) | 0x5000)
    yield "dirty_bits.dcm", dirty
    yield "implicit.dcm", stored_in(make(12, **window), ImplicitVRLittleEndian)
    yield "big_endian.dcm", stored_in(make(12, **window), ExplicitVRBigEndian)
    yield "deflated.dcm", stored_in(make(12, **window), DeflatedExplicitVRLittleEndian)
    for name, syntax in (("rle", RLELossless), ("jpeg_ls", JPEGLSLossless), ("jpeg_2000", JPEG2000Lossless)):
        yield f"{name}_12.dcm", stored_in(make(12, photometric="MONOCHROME1", **window), syntax)
        yield f"{name}_16.dcm", stored_in(make(16, **window), syntax)
        yield f"{name}_signed.dcm", stored_in(make(16, signed=True, **window), syntax)
    colour = np.stack([scene(8, False), scene(8, False)[::-1], scene(8, False)[:, ::-1]], -1)
    yield "rgb.dcm", make(8, photometric="RGB", pixels=colour)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def describe(values):
    values = np.asarray(values, np.float64).ravel()
    step = max(1, values.size // 61)
    return {"sha256": digest(values), "least": float(values.min()), "largest": float(values.max()),
            "sum": float(values.sum()), "step": step, "values": [float(v) for v in values[::step]]}


def scaled(values, low, high):
    span = high - low
    return np.zeros(values.shape) if span <= 0 else 255 * ((values - low) / span)


def round_half_up(values):
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def voi_range(data, values):
    """What the VOI stage's values range over."""
    if data.get("VOILUTSequence"):
        return 0.0, 2.0 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    if "WindowCenter" not in data or "WindowWidth" not in data:
        return values.min(), values.max()
    if data.get("ModalityLUTSequence"):
        low, high = 0.0, 2.0 ** data.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    elif data.PixelRepresentation:
        low, high = -2.0 ** (data.BitsStored - 1), 2.0 ** (data.BitsStored - 1) - 1
    else:
        low, high = 0.0, 2.0 ** data.BitsStored - 1
    if "RescaleSlope" in data and "RescaleIntercept" in data:
        low, high = (float(data.RescaleSlope) * v + float(data.RescaleIntercept) for v in (low, high))
    return min(low, high), max(low, high)


def describe_file(data):
    pixels = data.pixel_array
    result = {"width": int(data.Columns), "height": int(data.Rows), "photometric": data.PhotometricInterpretation,
              "syntax": str(data.file_meta.TransferSyntaxUID), "stored": describe(pixels)}
    if pixels.ndim != 2:
        return result
    modality = apply_modality_lut(pixels, data)
    result["modality"] = describe(modality)
    count = 1
    if data.get("VOILUTSequence"):
        count = len(data.VOILUTSequence)
    elif "WindowCenter" in data and data["WindowCenter"].VM > 1:
        count = data["WindowCenter"].VM
    voi = [apply_voi_lut(modality, data, index) for index in range(count)]
    result["voi"] = [describe(values) for values in voi]
    flip = (lambda a: 255 - a) if data.PhotometricInterpretation == "MONOCHROME1" else (lambda a: a)
    first = np.asarray(voi[0], np.float64)
    stored = np.asarray(pixels, np.float64)
    plain = np.asarray(modality, np.float64)
    mimic = np.floor(scaled(stored, stored.min(), stored.max())).astype(np.uint8)
    result["eight"] = {
        "window": digest(flip(round_half_up(scaled(first, *voi_range(data, first))))),
        "range": digest(flip(round_half_up(scaled(plain, plain.min(), plain.max())))),
        "mimic_cxr_jpg": digest(cv2.equalizeHist(flip(mimic))),
    }
    return result


PUBLISHED = {
    "data_store": ["RG1_UNCI", "RG1_UNCR", "RG1_J2KI", "RG1_J2KR", "RG3_UNCI", "RG3_UNCR", "RG3_J2KI", "RG3_J2KR",
                   "MR2_J2KI", "MR2_J2KR", "MR2_UNCI", "693_J2KR", "693_UNCI", "JPEG-LL", "JPGLosslessP14SV1_1s_1f_8b",
                   "mlut_18", "vlut_04", "MR-SIEMENS-DICOM-WithOverlays", "explicit_VR-UN", "SC_rgb", "color-pl",
                   "color-px", "US1_J2KR", "US1_UNCI", "SC_ybr_full_uncompressed"],
    "pydicom": ["CT_small", "MR_small", "MR_small_RLE", "MR_small_bigendian", "MR_small_implicit",
                "MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "JPGExtended", "JPEG2000",
                "JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "image_dfl", "J2K_pixelrep_mismatch", "693_J2KI",
                "examples_overlay", "examples_rgb_color", "SC_rgb_rle", "SC_rgb_jpeg_gdcm", "SC_rgb_small_odd"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[1] / "data/dicom")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    made = {}
    for name, data in files():
        encoding = {ImplicitVRLittleEndian: (True, True), ExplicitVRBigEndian: (False, False)}
        implicit, little = encoding.get(data.file_meta.TransferSyntaxUID, (False, True))
        data.save_as(out / name, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
        made[name] = describe_file(pydicom.dcmread(out / name))
    (out / "made.json").write_text(json.dumps(made, indent=1) + "\n")
    published = {}
    folders = {"data_store": pathlib.Path(data_store.__file__).parent / "data",
               "pydicom": pathlib.Path(pydicom.__file__).parent / "data/test_files"}
    for package, names in PUBLISHED.items():
        for name in names:
            path = folders[package] / f"{name}.dcm"
            published[str(path.relative_to(folders[package].parents[1 if package == "pydicom" else 0].parent))] = \
                describe_file(pydicom.dcmread(path))
    (out / "published.json").write_text(json.dumps(published, indent=1) + "\n")


if __name__ == "__main__":
    main()
