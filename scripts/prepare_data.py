"""Get a data set, or check one.

python scripts/prepare_data.py                                         # phantoms, offline
python scripts/prepare_data.py --source kermany                        # 1.2 GB from Mendeley Data
python scripts/prepare_data.py --source pneumoniamnist --size 64       # 21 MB from Zenodo
python scripts/prepare_data.py --source dicom --from ward/ --out data/ward
python scripts/prepare_data.py --check data/kermany                    # and a picture of it
"""

from cxr_tf import cli
from cxr_tf.config import PrepareData


def main(settings: PrepareData) -> None:
    from cxr_tf.preparation.prepare_data import prepare

    prepare(settings)


if __name__ == "__main__":
    cli.run(PrepareData, main)
