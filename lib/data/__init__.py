"""Every data set as rows of one schema, audited by a gate, in one prompt format."""
