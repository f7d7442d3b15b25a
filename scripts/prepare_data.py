"""Download, generate or convert a data set, or check one.

python scripts/prepare_data.py                                         # phantoms, offline
python scripts/prepare_data.py --source kermany                        # 1.2 GB from Mendeley Data
python scripts/prepare_data.py --source pneumoniamnist --size 64       # 21 MB from Zenodo
python scripts/prepare_data.py --source dicom --from ward/ --out data/ward
python scripts/prepare_data.py --check data/kermany                    # and draw a sample
"""

from cxr_tf.commands import run

if __name__ == "__main__":
    run("prepare_data")
