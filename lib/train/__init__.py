"""What changes weights: QLoRA and DPO on one device, FSDP on several, watched and resumable."""
