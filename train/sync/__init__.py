"""Do lips and sound belong together: a small model of ours (not SyncNet), its training and what it
measures."""
