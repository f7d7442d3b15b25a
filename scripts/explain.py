"""Explain a classifier's predictions with heatmaps: occlusion, class activation maps, SmoothGrad.

python scripts/explain.py --classifier logs/classifier/vgg16-binary
python scripts/explain.py --classifier logs/classifier/vgg16-binary --method all --count 24
python scripts/explain.py --classifier logs/classifier/vgg16-binary --images ward/*.jpeg
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("explain")
