"""Services: what is done with decisions and numbers, behind ports and beside no edge."""
