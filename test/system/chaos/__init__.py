"""A chain of real servers under faults: scripts/chaos."""
