"""Between and around solutions: paths, REPAIR, the plane through three nets, diversity, the toy."""
