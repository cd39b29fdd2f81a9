//! Files that other programs read: safetensors, config.json, checkpoints, model directories.
