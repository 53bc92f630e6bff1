"""Plan and run a recipe: the only place that knows the order of things."""
