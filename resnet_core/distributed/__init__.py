"""The processes that train together: starting them, joining them, noticing that one is gone."""
