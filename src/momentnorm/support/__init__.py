"""Support: the parts that the command lines share."""
