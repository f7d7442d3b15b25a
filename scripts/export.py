"""Convert a classifier's SavedModel to ONNX, LiteRT or OpenVINO, and verify the result.

python scripts/export.py --model saved_models/vgg16-binary --format onnx --data chest_xray
python scripts/export.py --model saved_models/vgg16-binary --format litert --precision int8
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("export")
