"""The worker's side of draft stores: what operators and tenants may do to them."""
