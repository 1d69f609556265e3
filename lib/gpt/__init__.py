"""A GPT from scratch: its text, tokens, model, training and speed-ups, and so the embedded base."""
