"""Where files lie: on a disk, on object storage, on a web server."""
