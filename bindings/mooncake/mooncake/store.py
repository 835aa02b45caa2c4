"""Mooncake's store, which kvferry does not have."""

raise ImportError("mooncake.store is not part of kvferry-mooncake: only mooncake.engine is")
