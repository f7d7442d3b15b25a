"""Classify or score an archive of any size, on this machine or on a Ray cluster.

python scripts/score_archive.py --images ward/ --model saved_models/vgg16-binary --out scores/
python scripts/score_archive.py --images ward/ list.csv --model saved_models/vgg16-binary \\
    --out s3://pacs/scores --signatures serving_default embed --workers 2
python scripts/score_archive.py --out scores/ --status
python scripts/score_archive.py --out scores/ --merge scores.parquet
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("score_archive")
