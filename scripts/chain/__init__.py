"""Servers in a chain: what scripts/demo and the system tests start, talk to and look at. Standard library only."""
