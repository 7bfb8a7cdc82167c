"""Everything that becomes true because results arrived."""
