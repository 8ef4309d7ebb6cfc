"""Real images and distilled sets: sources, file formats, pixel spaces, augmentation. Plain PyTorch, no Ray."""
