"""What drafters have learnt: indexes of texts, each namespace apart from the others."""
