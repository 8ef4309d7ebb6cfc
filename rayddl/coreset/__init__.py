"""Real images that stand for their class: the selections that distilled sets are judged against."""
