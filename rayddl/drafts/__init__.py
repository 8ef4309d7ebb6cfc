"""A first definition for a folder of images: what is in it, the settings that suit it, and the commented file."""
