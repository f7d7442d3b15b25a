"""Is what is served what was measured? Asks exported models again, in a bare TensorFlow.

python scripts/check_served.py --runs logs/classifier/vgg16-binary logs/knn/vgg16-binary-knn
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("check_served")
