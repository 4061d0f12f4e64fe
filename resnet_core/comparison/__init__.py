"""Two networks, rung by rung: how equal they are, where they first differ, and why."""
