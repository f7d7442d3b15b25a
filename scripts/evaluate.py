"""Evaluate an exported SavedModel on any labelled folder of radiographs.

python scripts/evaluate.py --model saved_models/vgg16-binary --data other_hospital
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("evaluate")
