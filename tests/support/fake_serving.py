"""Stand-ins for TF Serving's REST and gRPC servers, written after its documentation and protos.

    with rest_server(models) as url, grpc_server(models) as address: ...

models: {name: folder of the SavedModel}. `models.before` is called with each prediction request
before the response, and may raise Refused to return an error instead.
"""

import contextlib
import http.server
import json
import threading
from concurrent import futures
from pathlib import Path

import bare_tensorflow
import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    predict_pb2,
    prediction_service_pb2_grpc,
)

# HTTP statuses of gRPC codes, as in tensorflow_serving/util/net_http and the gRPC documentation.
HTTP = {"INVALID_ARGUMENT": 400, "NOT_FOUND": 404, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503,
        "INTERNAL": 500}  # fmt: skip


class Refused(Exception):
    def __init__(self, code, message, retry_after=None):
        super().__init__(message)
        self.code, self.message, self.retry_after = code, message, retry_after


class Models:
    def __init__(self, root):
        self.root, self.loaded, self.requests = Path(root), {}, []
        self.before = lambda contents: None

    def find(self, name, version="", label=""):
        """Return the run function and signatures of a version; the label `stable` is version 1."""
        folder = self.root / name / (version or "1")
        if not folder.is_dir() or label not in ("", "stable"):
            raise Refused("NOT_FOUND", f"Servable not found for request: Latest({name})")
        if folder not in self.loaded:
            self.loaded[folder] = bare_tensorflow.load(folder)
        return self.loaded[folder]

    def predict(self, run, signature, inputs):
        self.requests.append((signature, len(next(iter(inputs.values())))))
        self.before(next(iter(inputs.values())))
        try:
            return run(signature, inputs)
        except tf.errors.InvalidArgumentError as error:
            # Python puts a title before the message of the C++ status.
            lines = [line for line in error.message.splitlines() if "assertion" in line]
            raise Refused("INVALID_ARGUMENT", "\n\t ".join([*lines, "[[{{node x}}]]"])) from None


@contextlib.contextmanager
def rest_server(models):
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

        def find(self):
            path, _, verb = self.path.partition(":")
            parts = path.strip("/").split("/")
            assert parts[:2] == ["v1", "models"]
            if parts[-1] == "metadata":
                verb = parts.pop()
            which = dict(zip(parts[3::2], parts[4::2], strict=True))
            found = models.find(parts[2], which.get("versions", ""), which.get("labels", ""))
            return parts[2], verb, found

        def answer(self, make):
            headers = {}
            try:
                code, content = 200, make()
            except Refused as refused:
                code, content = HTTP[refused.code], {"error": refused.message}
                if refused.retry_after:
                    headers["Retry-After"] = refused.retry_after
            body = json.dumps(content).encode()
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):
                self.wfile.write(body)

        def do_GET(self):
            def metadata():
                name, verb, (_, signatures) = self.find()
                assert verb == "metadata"
                signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
                return {
                    "model_spec": {"name": name, "signature_name": "", "version": "1"},
                    "metadata": {
                        "signature_def": json_format.MessageToDict(
                            signature_defs, preserving_proto_field_name=True
                        )
                    },
                }

            self.answer(metadata)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))

            def prediction():
                _, verb, (run, signatures) = self.find()
                assert verb == "predict"
                signature, inputs, in_rows = bare_tensorflow.inputs_of_json(body, signatures)
                outputs = models.predict(run, signature, inputs)
                return bare_tensorflow.json_of_outputs(outputs, in_rows)

            self.answer(prediction)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def grpc_server(models):
    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def answer(self, request, context, make):
            spec = request.model_spec
            version = str(spec.version.value) if spec.HasField("version") else ""
            try:
                return make(*models.find(spec.name, version, spec.version_label))
            except Refused as refused:
                context.abort(getattr(grpc.StatusCode, refused.code), refused.message)

        def GetModelMetadata(self, request, context):
            def metadata(_, signatures):
                assert list(request.metadata_field) == ["signature_def"]
                signature_defs = get_model_metadata_pb2.SignatureDefMap(signature_def=signatures)
                response = get_model_metadata_pb2.GetModelMetadataResponse()
                response.metadata["signature_def"].Pack(signature_defs)
                return response

            return self.answer(request, context, metadata)

        def Predict(self, request, context):
            def prediction(run, _):
                signature = request.model_spec.signature_name or "serving_default"
                inputs = {k: tf.make_ndarray(v) for k, v in request.inputs.items()}
                response = predict_pb2.PredictResponse()
                for name, values in models.predict(run, signature, inputs).items():
                    response.outputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(values)))
                return response

            return self.answer(request, context, prediction)

    # TF Serving takes messages of any size.
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(2), options=options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
