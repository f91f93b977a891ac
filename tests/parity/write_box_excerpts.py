"""Excerpts of the box tables that torchxrayvision ships, for tests/data/dataset_formats_test.cc.

    python tests/parity/write_box_excerpts.py [FOLDER]

FOLDER: where to write; default tests/data/formats. The tables are VinDr-CXR (VinBigData), RSNA Pneumonia and NIH
ChestX-ray14 as published; the excerpts are a few whole pictures of each.
"""

import gzip
import importlib.util
import io
import pathlib
import sys
import zipfile


def tables() -> pathlib.Path:
    spec = importlib.util.find_spec("torchxrayvision")
    return pathlib.Path(spec.origin).parent / "data"


def pick(text: str, num_first: int, wanted) -> str:
    """The header, and the rows of the pictures that `wanted` chooses among the rows, in the file's order."""
    lines = text.splitlines(keepends=True)
    rows = [line for line in lines[1:] if line.strip()]
    keys = []
    for row in rows:
        key = row.split(",")[0]
        if key not in keys and wanted(row):
            keys.append(key)
        if len(keys) == num_first:
            break
    return lines[0] + "".join(row for row in rows if row.split(",")[0] in keys)


def main() -> None:
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[1] / "data" / "formats")
    folder.mkdir(parents=True, exist_ok=True)
    source = tables()
    vindr = gzip.open(source / "vinbigdata-train.csv.gz", "rt").read()
    out = pick(vindr, 3, lambda row: "No finding" not in row) + pick(vindr, 2, lambda row: "No finding" in row).split("\n", 1)[1]
    (folder / "vindr.csv").write_text(out)
    with zipfile.ZipFile(source / "kaggle_stage_2_train_labels.csv.zip") as archive:
        rsna = archive.read("stage_2_train_labels.csv").decode()
    (folder / "rsna.csv").write_text(pick(rsna, 6, lambda row: True))
    nih = gzip.open(source / "BBox_List_2017.csv.gz", "rt").read()
    # Compressed, and without a last newline: both have to be read.
    data = "\n".join(nih.splitlines()[:6])
    buffer = io.BytesIO()
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as out_file:
        out_file.write(data.encode())
    (folder / "nih.csv.gz").write_bytes(buffer.getvalue())


main()
