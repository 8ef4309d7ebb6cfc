"""Images in: sources by name, pixel spaces, augmentation. Plain PyTorch; knows nothing of Ray."""
