"""The networks of the dataset-distillation literature, built by name."""
