"""Expert trajectories: training them, convexifying them (MCT), and their file format."""
