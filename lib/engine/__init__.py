"""What answers beside torch: llama.cpp, found or built and run, and the client that asks its server."""
