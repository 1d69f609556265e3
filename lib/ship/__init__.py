"""From adapter to served file: exported, asked the same questions, served here, shared, and in the cloud."""
