"""Matching training trajectories: windows, the meta-gradient, the outer loop (MTT, MCT)."""
