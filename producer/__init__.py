"""Programs that put jobs in."""
