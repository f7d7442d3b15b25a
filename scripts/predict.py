"""Classify or score images with a SavedModel or a model server.

python scripts/predict.py --model saved_models/vgg16-binary --images one.jpeg ward/
python scripts/predict.py --model saved_models/vgg16-binary --images ward/ --output out.csv
python scripts/predict.py --server http://localhost:8501 --model vgg16-binary --images ward/
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("predict")
