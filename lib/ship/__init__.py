"""From adapter to served file: exported, asked the same questions, served, shared, in the cloud."""
