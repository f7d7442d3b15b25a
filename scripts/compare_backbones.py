"""Train three backbones, select one on validation data, and evaluate all on test data.

python scripts/compare_backbones.py --data chest_xray --task three_class
python scripts/compare_backbones.py --runs logs/classifier/a logs/classifier/b
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("compare_backbones")
