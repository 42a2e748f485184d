"""Options of decoding methods that depend on the model, measured on texts."""
