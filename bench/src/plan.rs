//! The plan: the trials of a scenario, in the order in which they are done.
