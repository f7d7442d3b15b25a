"""Where radiographs come from: published data sets, MedMNIST, DICOM, phantoms."""
