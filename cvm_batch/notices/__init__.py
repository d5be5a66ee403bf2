"""Tells people and programs that a run has ended: by a webhook, by mail.

A notice names no patient, and one that cannot be delivered changes nothing of the run.
"""
