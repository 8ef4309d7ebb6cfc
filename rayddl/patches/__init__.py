"""RDED's mathematics: crops, realism score, selection, stitching. Plain tensors and arrays; knows no Ray."""
