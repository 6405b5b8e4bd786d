"""The normalizations of a Wan block, each with the operation that follows it."""
