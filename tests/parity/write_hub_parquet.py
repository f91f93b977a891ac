"""A parquet file as the Hugging Face hub's image sets are laid out, for tests/data/formats_test.cc.

    python tests/parity/write_hub_parquet.py [FILE]
"""

import io
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("L", (8, 6), level).save(out, format="PNG")
    return out.getvalue()


default = pathlib.Path(__file__).parents[1] / "data" / "formats" / "hub_vqa.parquet"
file = sys.argv[1] if len(sys.argv) > 1 else default
table = pa.table(
    {
        "image": pa.array(
            [{"bytes": png(10), "path": None}, {"bytes": png(10), "path": None}, {"bytes": png(200), "path": "b.png"},
             {"bytes": None, "path": "folder/c.png"}],
            type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "question": ["are regions of the brain infarcted?", "what is seen?", "is this a chest?", "and this?"],
        "answer": ["yes", "an infarct", "no", "yes"],
    }
)
pq.write_table(table, file, row_group_size=2)
