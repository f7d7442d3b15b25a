"""Labels and classes of a catalogue."""

from pathlib import Path

from catalogs import Write, error_of, write_list

from cxr_tf.data.loading import open_catalog


def test_error_names_unknown_labels_only(tmp_path: Path, write: Write) -> None:
    names = ("NORMAL", "Bacteria", "COVID", "PNEUMONIA")
    for name in names:
        write(f"{name}.png")
    source = write_list(tmp_path, "\n".join(["path,label", *(f"{n}.png,{n}" for n in names)]))
    catalog = open_catalog(source, resplit=False)
    message = error_of(lambda: catalog.labels("binary"))
    assert "label 'COVID' is not among the classes normal, pneumonia" in message


def test_an_unknown_task_is_refused(tmp_path: Path, write: Write) -> None:
    write("NORMAL/1.png")
    catalog = open_catalog(str(tmp_path), resplit=False)
    assert "binary, three_class, labels" in error_of(lambda: catalog.labels("ternary"))
