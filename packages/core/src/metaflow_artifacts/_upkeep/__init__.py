"""What keeps a store whole and small: check, gc, retain, and the listings that they share."""
