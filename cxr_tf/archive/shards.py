"""Write and read a shard: a Parquet file with one row per image, in the order of the list.

    columns = columns_of([outputs_for_one_image])      # one item per signature
    content = encode(columns, paths, rows, outputs, reasons, digest)

The columns are `path`; for classifiers, `label` and one float32 column per class; the other outputs
of the model by name, such as `embedding`, a list of fixed length; `remarks`, which states in words
what `is_novel` and `prediction_set` mean; and last, `reason`. For an image that was read, `reason`
is null; for an unreadable image, all output columns are null. Numbers are stored without loss. The
format is Parquet, because its types are exact, its columns can be read one by one, and pandas,
DuckDB, Spark and BigQuery open it; pyarrow writes equal bytes for equal rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

from cxr_tf.evaluation.prediction_output import image_predictions

# Columns of every shard. Outputs with these names are left out.
RESERVED = ("path", "reason")

REMARKS = "remarks"

# Keys in the metadata of the schema: the digest of the model, and the columns of probabilities.
MODEL, CLASSES = "cxr_tf.model", "cxr_tf.classes"


@dataclass(frozen=True)
class Column:
    """A column: an output [N], one class of an output [N, C], or an output [N, L] as lists.

    output: name of the output; index: index of the class in [N, C], otherwise None; length: L of
    the lists, otherwise None; dtype: name of a NumPy type, or "str".
    """

    name: str
    output: str
    index: int | None
    length: int | None
    dtype: str


def columns_of(samples: Sequence[dict[str, np.ndarray]]) -> list[Column]:
    """Return the columns for several signatures, from the outputs of each for one image.

    An output that several signatures have is stored once.
    """
    columns: dict[str, Column] = {}

    def add(column: Column) -> None:
        if column.name not in RESERVED:
            columns.setdefault(column.name, column)

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
    return list(columns.values())


def schema_of(columns: Sequence[Column], digest: str) -> Any:
    """Return the Arrow schema of a shard, with the digest of the model in its metadata."""
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
    """Return the content of a shard.

    rows: ascending indices into `paths` of the images that have outputs; `outputs[name][k]` belongs
    to `paths[rows[k]]`. reasons: {index: why the image has no output} for all other paths.
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
        # Dictionary encoding saves no space for numbers, which rarely repeat.
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
        output = outputs[column.output]
        values[rows] = output if column.index is None else output[:, column.index]
    if length is None:
        return pa.array(values, kind, mask=missing)
    flat = pa.array(values.ravel(), kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind, mask=pa.array(missing))


def outputs_of(table: Any) -> dict[str, np.ndarray]:
    """Return the outputs of the model for the readable images of a shard, each [N, ...]."""
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
    """Return the outputs, with `remarks` if they include `is_novel` or `prediction_set`."""
    if not {"is_novel", "prediction_set"} & outputs.keys():
        return outputs
    count = len(next(iter(outputs.values())))
    remarks = [image_predictions(outputs, row)[REMARKS] for row in range(count)]
    return {**outputs, REMARKS: np.array(remarks, object)}


def open_shard(file: IO[bytes]) -> Any:
    """Open a shard as `pyarrow.parquet.ParquetFile`."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(file)
