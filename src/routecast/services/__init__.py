"""Services: what a node does with decisions and sums. They know ports, and no edge."""
