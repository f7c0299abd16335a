"""Assembly: the rooms of the floor below put together for train, evaluate and serve."""
