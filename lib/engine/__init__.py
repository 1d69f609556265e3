"""What answers beside torch: llama.cpp and vLLM, run, and asked by token ids with the calculator."""
