"""The processes that train together: start them, join them, detect that one died."""
