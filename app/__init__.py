"""The director's desk: a page on this machine to make a plan, look at it, change it and render it."""
