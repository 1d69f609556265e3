"""The server before an engine: OpenAI's protocol, and the calculator while an answer is written."""
