"""One shard: a Parquet file with one row per image, in the order of the list.

    columns = columns_of([answer to one image per signature])
    content = encode(columns, images, rows, reasons, recipe_digest)

Columns: `path`; then, of a classifier, `label` and one float32 per class; then the model's other
outputs by name, such as `embedding`, a list of fixed length, and `remarks`, which says in words
what `is_novel` and `prediction_set` mean; last `reason`, which is null for an image that was read,
while all others are null for one that was not. Numbers are stored as the model gave them. Parquet,
because its types are exact, columns can be read one by one, and pandas, DuckDB, Spark and BigQuery
open it; pyarrow writes equal bytes for equal rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from cxr_tf.evaluation.prediction_output import image_predictions

# Columns that every shard has. An output of that name would hide one.
RESERVED = ("path", "reason")

REMARKS = "remarks"

# In the metadata of the schema: the digest of the model, and which columns are probabilities.
MODEL, CLASSES = "cxr_tf.model", "cxr_tf.classes"


@dataclass(frozen=True)
class Column:
    """A column of numbers or text: [N] in an output, or one class of it, or rows of a list.

    output: name of the model's output; index: of the class in [N, C], else None. length: of the
    list in each row, else None. dtype: as NumPy names it, or "str".
    """

    name: str
    output: str
    index: int | None
    length: int | None
    dtype: str


def columns_of(samples: Sequence[dict[str, np.ndarray]]) -> list[Column]:
    """The columns for the outputs of several signatures, read off their answers to one image.

    Of outputs that several signatures have, the first counts.
    """
    found: dict[str, Column] = {}

    def add(column: Column) -> None:
        if column.name not in RESERVED:
            found.setdefault(column.name, column)

    for outputs in samples:
        classes: list[str] = []
        if "classes" in outputs and "probabilities" in outputs:
            classes = [str(c) for c in outputs["classes"][0]]
        if "label" in outputs:
            add(Column("label", "label", None, None, "str"))
        for k, name in enumerate(classes):
            add(Column(name, "probabilities", k, None, str(outputs["probabilities"].dtype)))
        for name, values in sorted(outputs.items()):
            if classes and name in ("classes", "probabilities"):
                continue
            dtype = "str" if values.dtype == object else str(values.dtype)
            length = values.shape[1] if values.ndim == 2 else None
            add(Column(name, name, None, length, dtype))
    return list(found.values())


def schema_of(columns: Sequence[Column], digest: str) -> Any:
    """The Arrow schema of a shard; the model's digest stands in its metadata."""
    import pyarrow as pa

    fields = [pa.field("path", pa.string(), nullable=False)]
    for column in columns:
        kind = pa.string() if column.dtype == "str" else pa.from_numpy_dtype(column.dtype)
        fields.append(
            pa.field(column.name, kind if column.length is None else pa.list_(kind, column.length))
        )
    fields.append(pa.field("reason", pa.string()))
    classes = [c.name for c in columns if c.output == "probabilities" and c.index is not None]
    return pa.schema(fields, metadata={MODEL: digest, CLASSES: json.dumps(classes)})


def encode(
    columns: Sequence[Column],
    paths: Sequence[str],
    rows: Sequence[int],
    outputs: dict[str, np.ndarray],
    reasons: dict[int, str],
    digest: str,
) -> bytes:
    """The content of a shard.

    rows: which of the N `paths` have outputs, ascending, in the order of the outputs' first axis;
    reasons: of the others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = schema_of(columns, digest)
    missing = np.ones(len(paths), bool)
    missing[list(rows)] = False
    arrays = [pa.array(paths, pa.string())]
    for column, field in zip(columns, list(schema)[1:-1], strict=True):
        arrays.append(_array(column, field.type, outputs, np.asarray(rows, int), missing))
    arrays.append(pa.array([reasons.get(k) for k in range(len(paths))], pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.table(arrays, schema=schema),
        sink,
        compression="zstd",
        # Numbers seldom repeat.
        use_dictionary=[c.name for c in columns if c.dtype == "str" and c.length is None],
    )
    return sink.getvalue().to_pybytes()


def _array(
    column: Column, kind: Any, outputs: dict[str, np.ndarray], rows: np.ndarray, missing: np.ndarray
) -> Any:
    import pyarrow as pa

    count, length = len(missing), column.length
    shape = (count,) if length is None else (count, length)
    values = np.full(shape, "", object) if column.dtype == "str" else np.zeros(shape, column.dtype)
    if len(rows):
        found = outputs[column.output]
        values[rows] = found if column.index is None else found[:, column.index]
    if length is None:
        return pa.array(values, kind, mask=missing)
    flat = pa.array(values.ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(missing))


def outputs_of(table: Any) -> dict[str, np.ndarray]:
    """The model's outputs for the images of a shard that could be read, each [N, ...]."""
    import pyarrow.compute as pc

    table = table.filter(pc.is_null(table["reason"]))
    classes = json.loads(table.schema.metadata[CLASSES.encode()])
    outputs = {}
    for name in table.column_names:
        if name in (*RESERVED, REMARKS, *classes):
            continue
        column, field = table[name], table.schema.field(name)
        kind = getattr(field.type, "value_type", field.type)
        dtype = object if str(kind) == "string" else kind.to_pandas_dtype()
        outputs[name] = np.array(column.to_pylist(), dtype)
    if classes:
        values = [table[name].to_numpy() for name in classes]
        outputs["probabilities"] = np.stack(values, axis=1)
        outputs["classes"] = np.tile(np.array(classes, object), (len(table), 1))
    return outputs


def with_remarks(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs, and in words what `is_novel` and `prediction_set` mean, where there are any."""
    if not {"is_novel", "prediction_set"} & outputs.keys():
        return outputs
    count = len(next(iter(outputs.values())))
    remarks = [image_predictions(outputs, row)[REMARKS] for row in range(count)]
    return {**outputs, REMARKS: np.array(remarks, object)}


def open_shard(file: IO[bytes]) -> Any:
    """A shard, opened as `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)
