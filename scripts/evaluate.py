"""Score a SavedModel of ours on any folder of radiographs.

python scripts/evaluate.py --model saved_models/vgg16-binary --data other_hospital
"""

from cxr_tf import cli
from cxr_tf.config import Evaluate


def main(settings: Evaluate) -> None:
    from cxr_tf.evaluation.evaluate import evaluate

    evaluate(settings)


if __name__ == "__main__":
    cli.run(Evaluate, main)
