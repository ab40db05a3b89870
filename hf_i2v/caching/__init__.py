"""How a feature cache lies on disk, how it is made, and of what; `hf_i2v.feature_cache` is what users import."""
