"""The audit log: who ran what over this folder, with which model, and what came of it.

    audit/<nnnnnn>.json   one entry each, never changed

Each entry holds the SHA-256 of the file before it and of its own content, so that none can be
changed, left out or put in between without notice. docs/decisions/0021 says what that proves.
"""
