"""What answers beside torch: llama.cpp, found or built and run, and the client of its server."""
