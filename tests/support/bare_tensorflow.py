"""Do what TF Serving does with a SavedModel, using only TensorFlow: `python bare_tensorflow.py`.

Loads it as TF Serving's own loader does (tag `serve`, tensors by the names in the signatures),
and converts REST bodies by the rules of https://www.tensorflow.org/tfx/serving/api_rest.
"""

import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf


def load(folder):
    """Return a function (signature, {input: array}) -> {output: array}, and the SignatureDefs."""
    graph = tf.Graph()
    with graph.as_default():
        session = tf.compat.v1.Session(graph=graph)
        loaded = tf.compat.v1.saved_model.loader.load(session, ["serve"], str(folder))
    signatures = {k: v for k, v in loaded.signature_def.items() if not k.startswith("__")}

    def run(signature, inputs):
        definition = signatures[signature]
        assert set(inputs) == set(definition.inputs)
        fetched = {k: v.name for k, v in definition.outputs.items()}
        return session.run(fetched, {definition.inputs[k].name: v for k, v in inputs.items()})

    return run, signatures


# ---------------------------------------------------------------------- REST rules


def inputs_of_json(body, signatures):
    """Parse a REST body; return its signature, {input: array}, and whether it is in rows."""
    signature = body.get("signature_name", "serving_default")
    infos = signatures[signature].inputs
    assert ("instances" in body) != ("inputs" in body)
    if "instances" in body:
        rows = body["instances"]
        assert isinstance(rows, list) and rows
        if isinstance(rows[0], dict) and set(rows[0]) != {"b64"}:
            columns = {name: [row[name] for row in rows] for name in rows[0]}
        else:
            columns = {_only(infos): rows}
    else:
        columns = body["inputs"]
        if not isinstance(columns, dict) or set(columns) == {"b64"}:
            columns = {_only(infos): columns}
    arrays = {}
    for name, values in columns.items():
        is_string = infos[name].dtype == tf.string.as_datatype_enum
        dtype = object if is_string else tf.as_dtype(infos[name].dtype).as_numpy_dtype
        arrays[name] = np.array(_binary(values), dtype)
    return signature, arrays, "instances" in body


def json_of_outputs(outputs, in_rows):
    """Convert {output: array} to the REST response; a single output loses its name."""
    lists = {name: _text(values.tolist()) for name, values in outputs.items()}
    if len(lists) == 1:
        return {"predictions" if in_rows else "outputs": next(iter(lists.values()))}
    if not in_rows:
        return {"outputs": lists}
    count = len(next(iter(lists.values())))
    assert all(len(v) == count for v in lists.values())
    return {"predictions": [{k: v[i] for k, v in lists.items()} for i in range(count)]}


def _only(infos):
    (name,) = infos
    return name


def _binary(value):
    if isinstance(value, list):
        return [_binary(v) for v in value]
    if isinstance(value, dict):
        assert set(value) == {"b64"}
        return base64.b64decode(value["b64"], validate=True)
    return value.encode() if isinstance(value, str) else value


def _text(value):
    if isinstance(value, list):
        return [_text(v) for v in value]
    return value.decode() if isinstance(value, bytes) else value


# ---------------------------------------------------------------------- the graph


def operations(folder):
    """Return the names of all operations, also inside functions, and those TensorFlow lacks."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
    from tensorflow.python.framework import op_def_registry

    saved = SavedModel.FromString((Path(folder) / "saved_model.pb").read_bytes())
    (meta_graph,) = saved.meta_graphs
    graph = meta_graph.graph_def
    names = {n.op for n in graph.node} | {n.op for f in graph.library.function for n in f.node_def}
    functions = {f.signature.name for f in graph.library.function}
    unknown = {n for n in names - functions if op_def_registry.get(n) is None}
    return sorted(names - functions), sorted(unknown)


def command_line(*arguments):
    """Return what `saved_model_cli` prints."""
    from tensorflow.python.tools import saved_model_cli

    printed, before = io.StringIO(), sys.argv
    sys.argv = ["saved_model_cli", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            saved_model_cli.main()
    finally:
        sys.argv = before
    return printed.getvalue()


def examine(folder, contents, work):
    """Return everything that the tests check of one SavedModel, as JSON types."""
    run, signatures = load(folder)
    found = {"rows": {}, "columns": {}, "named": {}, "cli": {}, "warm_up": []}
    encoded = [{"b64": base64.b64encode(c).decode()} for c in contents]
    for signature, definition in sorted(signatures.items()):
        (name,) = definition.inputs
        if definition.inputs[name].dtype != tf.string.as_datatype_enum:
            continue
        found["named"][signature] = json_of_outputs(
            run(signature, {name: np.array(contents, object)}), in_rows=False
        )
        for form, body in (
            ("rows", {"instances": [{name: e} for e in encoded]}),
            ("columns", {"inputs": {name: encoded}}),
        ):
            # Through text and back, as over the wire.
            body = json.loads(json.dumps({"signature_name": signature, **body}))
            _, inputs, in_rows = inputs_of_json(body, signatures)
            answer = json_of_outputs(run(signature, inputs), in_rows)
            found[form][signature] = json.loads(json.dumps(answer))
    # A single input may come without its name.
    _, inputs, in_rows = inputs_of_json({"instances": encoded}, signatures)
    found["nameless"] = json_of_outputs(run("serving_default", inputs), in_rows)
    try:
        run("serving_default", {"image_bytes": np.array([contents[0], b"text", b""], object)})
    except tf.errors.InvalidArgumentError as error:
        found["refused"] = error.message

    found["imported"] = sorted({m.split(".")[0] for m in sys.modules})
    found["show"] = command_line("show", "--dir", folder, "--all")
    files = work / "images.npy"
    np.save(files, np.array(contents[:2]))
    for signature, definition in sorted(signatures.items()):
        (name,) = definition.inputs
        if definition.inputs[name].dtype == tf.string.as_datatype_enum:
            out = work / signature
            command_line(
                *("run", "--dir", folder, "--tag_set", "serve", "--signature_def", signature),
                *("--inputs", f"{name}={files}", "--outdir", out),
            )
            found["cli"][signature] = {
                p.stem: _text(np.load(p, allow_pickle=True).tolist()) for p in out.iterdir()
            }

    found["operations"], found["unknown"] = operations(folder)
    # The format of the records is TF Serving's, and is defined in its Python package.
    from tensorflow_serving.apis import prediction_log_pb2

    file = Path(folder) / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        entry = prediction_log_pb2.PredictionLog.FromString(record)
        request = entry.predict_log.request
        outputs = run(
            request.model_spec.signature_name,
            {k: tf.make_ndarray(v) for k, v in request.inputs.items()},
        )
        found["warm_up"].append(
            {
                "kind": entry.WhichOneof("log_type"),
                "model": request.model_spec.name,
                "signature": request.model_spec.signature_name,
                "outputs": {k: list(v.shape) for k, v in outputs.items()},
                "finite": all(
                    np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f"
                ),
            }
        )
    return found


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    job = json.loads(Path(sys.argv[1]).read_text())
    answers = {}
    for folder in job["models"]:
        work = Path(sys.argv[1]).parent / Path(folder).parent.name
        work.mkdir()
        answers[folder] = examine(folder, [Path(p).read_bytes() for p in job["images"]], work)
    Path(sys.argv[2]).write_text(json.dumps(answers))
