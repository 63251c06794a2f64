"""The use cases: the only place where rules meet, in the order of the life of a read."""
