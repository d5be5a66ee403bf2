"""Slides as zarr."""
