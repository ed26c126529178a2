"""Models of rematerialization for outside solvers: HiGHS, CP-SAT, minimum cuts."""
