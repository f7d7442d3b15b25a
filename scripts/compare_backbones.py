"""Train ResNet50, VGG16 and AlexNet with the same settings, select on validation, report on test.

python scripts/compare_backbones.py --data chest_xray --task three_class
python scripts/compare_backbones.py --runs logs/classifier/a logs/classifier/b
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("compare_backbones")
