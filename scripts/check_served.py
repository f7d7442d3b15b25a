"""Verify exported models: predict all test images again, and compare with what was measured.

python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn
python scripts/check_served.py --runs logs/classifier/vgg16-binary --runtime c++
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("check_served")
