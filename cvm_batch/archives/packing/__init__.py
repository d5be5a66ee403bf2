"""From any slide archive to a packed one."""
