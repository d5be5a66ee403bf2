"""The files inside a folder, zip or tar."""
