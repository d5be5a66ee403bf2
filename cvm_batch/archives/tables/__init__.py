"""Tables beside slides and about them: cells, slides, digests."""
