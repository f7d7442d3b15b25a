"""Other runtimes for exported models: TensorFlow without `cxr_tf`, its C++ runtime, OpenVINO."""
