"""What every stage stands on: the stages and their settings, presets, run folders and their manifests, files."""
