"""Serve a web page with the prediction, heatmap, similar cases and anomaly map of a radiograph.

python scripts/demo.py                                     # models under saved_models/
python scripts/demo.py --server http://localhost:8501 --classifier vgg16-binary
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("demo")
