"""Layer sharings, one file each."""
