"""Sources of radiographs: published data sets, MedMNIST, DICOM, phantoms."""
