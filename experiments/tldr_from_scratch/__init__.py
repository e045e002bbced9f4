"""Four methods and three rewards on posts of Reddit, with a T5 trained from scratch."""
