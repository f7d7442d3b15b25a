"""Is what is served what was measured? Asks exported models again, in a bare TensorFlow.

python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn
"""

import sys

from cxr_tf import cli
from cxr_tf.config import CheckServed


def main(settings: CheckServed) -> None:
    from cxr_tf.serving.check_served import check_served

    if not check_served(settings).metrics()["agreed"]:
        sys.exit(1)


if __name__ == "__main__":
    cli.run(CheckServed, main)
