"""Slides as crops in image files."""
