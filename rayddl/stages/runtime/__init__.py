"""Ray and nothing but: starting it, what workers get of it, and how units of work are handed to them."""
