"""Erases a slide from a results folder, as a patient may ask: its rows, cells and tiles.

Nothing of it is left but an entry in the audit log that it was done, with a digest of the
slide's name. Whatever happens in between, calling again finishes: rows go after all that can
only be found by them, and files that no row names any more are found by what they hold.
"""
