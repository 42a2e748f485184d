"""Small tasks with a judge: they train the tiny model and compare decoders."""
