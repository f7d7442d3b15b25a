"""Verify exported models by repeating the predictions on all test images.

python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn
python scripts/check_served.py --runs logs/classifier/vgg16-binary --runtime c++
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("check_served")
